"""A Hugging Face hub on this machine: the requests that a download makes, for one repository."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

COMMIT = '0123456789abcdef' * 2 + '01234567'
MIB = 2**20


@dataclass
class Served:
    """One file, and how the server misbehaves about it.

    Attributes:
        content: what was published; size and sha256 are told of it.
        sent: what is really sent.
        cut_after: bytes after which the connection ends, once.
        reset: it does not end in order then, but as when a router forgets it.
        hold_after: bytes after which the server waits for ``go``.
        status: answered instead of 200 or 206, with the header ``X-Error-Code``.
        plain: no large file storage, as of a mirror that drops the hub's headers; the sha256 is
            in the list of files alone.
    """

    content: bytes
    sent: bytes | None = None
    cut_after: int | None = None
    reset: bool = False
    hold_after: int | None = None
    status: tuple[int, str] | None = None
    plain: bool = False
    go: threading.Event = field(default_factory=threading.Event)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def body(self) -> bytes:
        return self.content if self.sent is None else self.sent


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    range: str | None
    token: str | None


class Hub:
    """The running server.

    Attributes:
        endpoint: for ``HF_ENDPOINT``.
        files: by name, changed by the tests at will.
        requests: all that came, in order.
        commit: the newest one.
    """

    def __init__(self, repository: str, files: dict[str, bytes]):
        self.repository = repository
        self.files = {name: Served(content) for name, content in files.items()}
        self.requests: list[Request] = []
        self.commit = COMMIT
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.server.daemon_threads = True
        port = self.server.server_address[1]
        self.endpoint = f'http://127.0.0.1:{port}'
        # Another origin, as the hub's own storage: redirects to it must not carry the token.
        self.storage = f'http://localhost:{port}'

    def contents(self) -> list[Request]:
        """The requests for content, in order."""
        return [r for r in self.requests if r.method == 'GET' and r.path.startswith('/storage/')]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    hub: Hub

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
        self._note()
        if self.path != f'/api/models/{self.hub.repository}/paths-info/main':
            return self._end(404, {'X-Error-Code': 'RepoNotFound'})
        asked = json.loads(body) if body[:1] == b'{' else None
        names = asked['paths'] if asked else re.findall(r'paths=([^&]*)', body.decode())
        entries = [self._entry(name) for name in map(unquote, names) if name in self.hub.files]
        return self._end(200, {'Content-Type': 'application/json'}, json.dumps(entries).encode())

    def _entry(self, name: str) -> dict:
        file = self.hub.files[name]
        size = len(file.content)
        lfs = dict(oid=file.sha256, size=size, pointerSize=134)
        return dict(type='file', path=name, size=size, oid='1' * 40, lfs=lfs)

    def _answer(self):
        self._note()
        storage = re.fullmatch('/storage/(.*)', self.path)
        resolve = re.fullmatch(
            f'/{self.hub.repository}/resolve/(main|{self.hub.commit})/(.*)', unquote(self.path)
        )
        name = storage[1] if storage else resolve[2] if resolve else None
        file = self.hub.files.get(name)
        if not (storage or resolve):
            return self._end(404, {'X-Error-Code': 'RepoNotFound'})
        if file is None:
            return self._end(
                404, {'X-Error-Code': 'EntryNotFound', 'X-Repo-Commit': self.hub.commit}
            )
        if file.status:
            return self._end(file.status[0], {'X-Error-Code': file.status[1]})
        if storage:
            return self._content(file)
        return self._resolve(name, file)

    def _resolve(self, name: str, file: Served):
        """Large files are elsewhere; what they are is told here."""
        headers = {
            'X-Repo-Commit': self.hub.commit,
            'Location': f'{self.hub.storage}/storage/{name}',
        }
        if file.plain:
            headers['ETag'] = f'"{hashlib.sha1(name.encode()).hexdigest()}"'
        else:
            headers |= {
                'ETag': '"of the storage"',
                'X-Linked-ETag': f'"{file.sha256}"',
                'X-Linked-Size': str(len(file.content)),
                # As of a file in the hub's newer storage, which clients may ask in another way.
                'X-Xet-Hash': '2' * 64,
                'Link': f'<{self.hub.endpoint}/xet-token>; rel="xet-auth"',
            }
        return self._end(302, headers)

    def _content(self, file: Served):
        start = 0
        if asked := re.fullmatch(r'bytes=(\d+)-', self.headers.get('Range', '')):
            start = int(asked[1])
        size = len(file.body)
        if start >= size:
            return self._end(416, {'Content-Range': f'bytes */{size}'})
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header('Content-Range', f'bytes {start}-{size - 1}/{size}')
        self.send_header('Content-Length', str(size - start))
        self.end_headers()
        if self.command == 'GET':
            self._send(file, start)
        return None

    def _send(self, file: Served, start: int):
        body = file.body
        for position in range(start, len(body), MIB):
            if file.hold_after is not None and position >= file.hold_after:
                file.go.wait(30)
            if file.cut_after is not None and position >= file.cut_after:
                file.cut_after = None
                return self._cut(file.reset)
            try:
                self.wfile.write(body[position : position + MIB])
            except OSError:  # the client is gone
                return self._cut()
        return None

    def _cut(self, reset: bool = False):
        self.close_connection = True
        if reset:
            time.sleep(0.5)  # what was sent arrives, a reset would drop it
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
            for stream in (self.rfile, self.wfile, self.connection):
                stream.close()

    def _note(self):
        token = self.headers.get('Authorization')
        self.hub.requests.append(Request(self.command, self.path, self.headers.get('Range'), token))

    def _end(self, status: int, headers: dict[str, str], body: bytes = b''):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(body)


@contextmanager
def serve(repository: str, files: dict[str, bytes]) -> Iterator[Hub]:
    """Run a hub with one repository on a free port of 127.0.0.1."""
    hub = Hub(repository, files)
    thread = threading.Thread(target=hub.server.serve_forever, kwargs=dict(poll_interval=0.05))
    thread.start()
    try:
        yield hub
    finally:
        for file in hub.files.values():
            file.go.set()
        hub.server.shutdown()
        thread.join()
        hub.server.server_close()
