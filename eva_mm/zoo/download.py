"""Published checkpoints from the authors' repository on the Hugging Face hub, each one verified.

Addresses, folders, tokens and offline mode are huggingface_hub's own: ``HF_ENDPOINT``, ``HF_HOME``,
``HF_HUB_CACHE``, ``HF_TOKEN``, ``HF_HUB_OFFLINE``. Two things are added to what it does:

- Size and sha256 of every file are compared with those that the hub names. The client compares the
  size alone. A file that passed is remembered by its size and time of change, so that the next
  start does not read gigabytes again.
- A download that was interrupted continues in a later process. The client keeps what arrived only
  as long as its own process lives. The plain HTTP address of a file is used for that, which
  continues at any byte, also for files in the hub's Xet storage.

A verified file in the cache is used without asking the hub, in whichever snapshot it lies:
published weights do not change, and sixty-four processes that start together need no network.

Processes wait for each other by locks, which do nothing on some shared file systems. There they
may download twice, but each into a file of its own, and files get their names by renaming alone.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eva_mm.errors import InputError
from eva_mm.zoo.table import REPOSITORY, SCHEME, find_model, published_models

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

__all__ = [
    'REPOSITORY',
    'SCHEME',
    'DownloadError',
    'cached_file',
    'content_digest',
    'fetch',
    'fetch_all',
    'names_to_fetch',
]

# Bytes read at once for a digest: few calls, and little memory.
CHUNK = 8 * 2**20
SHA256 = re.compile('[0-9a-f]{64}')
# Seconds without a change after which a partial file has no process any more. One that receives
# gives up earlier, and one that verifies reads a published file in less.
ABANDONED = 120
# In the repository's folder of the cache, with which it is copied and deleted.
RECORDS = '.verified'
BY_HAND = 'download it on another machine, and give the path of the file instead of the name'


class DownloadError(InputError):
    """A published file could not be had, or is not what the hub says it is."""


@dataclass(frozen=True)
class Expected:
    """What a file should be.

    Attributes:
        file: name in the repository.
        sha256: 64 hexadecimal digits.
        size: in bytes; None where the name of the cached content is all that is known.
        etag: what the cache calls the content; the sha256 itself for large files.
        url: address of exactly this version.
    """

    file: str
    sha256: str
    size: int | None = None
    etag: str = ''
    url: str = ''


def cached_file(name: str, download: bool = False) -> Path | None:
    """Local copy of a published checkpoint, in the cache of huggingface_hub.

    Args:
        name: with or without ``eva://``, see :func:`eva_mm.zoo.table.find_model`.
        download: verify the file, and fetch it when it is not there. Without it nothing is read,
            written or asked.

    Returns:
        Its path; None when it is not cached and ``download`` is off.

    Raises:
        InputError: no checkpoint of that name is known.
        DownloadError: see :func:`fetch`.
    """
    if download:
        return fetch(name)
    return _cached(find_model(name).file)


def fetch(name: str, dest: str | os.PathLike | None = None, copies: int = 1) -> Path:
    """Have a published checkpoint on disk, whole and verified.

    Safe for many processes at once: one downloads, the others say so and wait for it. Without
    network, a file that is there is verified by its name in the cache, or by the record of an
    earlier verification; both survive a copy of the folder that loses links and times.

    Args:
        name: with or without ``eva://``, see :func:`eva_mm.zoo.table.find_model`.
        dest: a folder to put the file into under its published name; it is made if needed. The
            cache is then not filled, but a copy there is used. Default: the cache.
        copies: how many files of this size the cache's disk must have room for before a download
            starts.

    Returns:
        Path of the file, in the cache or in ``dest``.

    Raises:
        InputError: no checkpoint of that name is known.
        DownloadError: no network, no access, no such file, too little disk, or a file whose size
            or sha256 is not the hub's, which is removed.
    """
    file = find_model(name).file
    with _plain_errors(file):
        if dest is None:
            return _into_cache(file, copies)
        return _into_folder(file, Path(dest))


def content_digest(cached: str | os.PathLike) -> str:
    """The sha256 of a published file that :func:`fetch` has verified, which is not read again.

    Args:
        cached: path in the cache, as :func:`fetch` gives it.

    Returns:
        64 hexadecimal digits.

    Raises:
        DownloadError: its name does not tell, and it has changed or cannot be read.
    """
    cached = Path(cached)
    with _plain_errors(cached.name):
        named = cached.resolve().name
        return named if SHA256.fullmatch(named) else _verify_cached(cached)


def names_to_fetch(
    names: Iterable[str] = (), every: bool = False, task: str | None = None
) -> list[str]:
    """What a command line asks for.

    Args:
        names: as the user wrote them.
        every: all published checkpoints, or all of ``task``.
        task: one of the tasks of the table.

    Raises:
        InputError: no checkpoint has this task.
    """
    models = published_models()
    tasks = sorted({model.task for model in models.values()})
    if task is not None and task not in tasks:
        raise InputError(f'--task: no checkpoint is for {task!r}, expected one of {tasks}')
    if not every:
        return list(names)
    return [name for name, model in models.items() if task in (None, model.task)]


def fetch_all(
    names: Iterable[str],
    dest: str | os.PathLike | None = None,
    report: Callable[[str], None] = print,
    complain: Callable[[str], None] = print,
) -> list[str]:
    """:func:`fetch` several checkpoints; one that fails does not keep the others from coming.

    Room on the disk is compared with the sum of all before the first starts.

    Args:
        names: see :func:`fetch`.
        dest: see :func:`fetch`.
        report: takes a line for each file that is there.
        complain: takes a line for each that is not.

    Returns:
        The names that failed.

    Raises:
        DownloadError: the disk has no room for all that is missing.
    """
    names = list(dict.fromkeys(names))
    failed = {}
    missing = {}
    for name in names if len(names) > 1 else ():
        try:
            missing[name] = _missing_bytes(find_model(name).file, dest)
        except InputError as error:
            failed[name] = error
            complain(str(error))
    _require_space(sum(missing.values()), _folder_of(dest), f'these {len(missing)} files')
    for name in names:
        if name in failed:
            continue
        try:
            path = fetch(name, dest)
            report(f'{path.name}: {path} ({_readable(path.stat().st_size)}, sha256 verified)')
        except InputError as error:
            failed[name] = error
            complain(str(error))
    return list(failed)


# The cache. Its layout is huggingface_hub's: blobs/ETAG holds the content, snapshots/COMMIT/FILE
# links to it, refs/main names the commit. `.verified` is ours.


def repository_cache() -> Path:
    """Folder of the authors' repository in the hub's cache."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=REPOSITORY, repo_type='model')
    return Path(constants.HF_HUB_CACHE) / folder


def _client_locks() -> Path:
    cache = repository_cache()
    return cache.parent / '.locks' / cache.name


def _own_folders(part: str) -> list[Path]:
    """Where records and locks go when the cache is another's, which we may only read."""
    users = Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser()
    temporary = Path(tempfile.gettempdir(), f'eva_mm-{getattr(os, "getuid", int)()}')
    return [users / 'eva_mm' / part, temporary / part]


def _locks() -> Path:
    folders = [_client_locks(), *_own_folders('locks')]
    return next(filter(writable, folders), folders[0])


def _cached(file: str) -> Path | None:
    """A file in the cache: of the newest commit, else of an older one, verified ones first."""
    from huggingface_hub import try_to_load_from_cache

    newest = try_to_load_from_cache(REPOSITORY, file)
    if isinstance(newest, str):
        return Path(newest)
    found = [path for path in repository_cache().glob(f'snapshots/*/{file}') if path.is_file()]
    return max(found, key=lambda p: (bool(_remembered(p)), p.lstat().st_mtime_ns), default=None)


def _into_cache(file: str, copies: int) -> Path:
    cached = _cached(file)
    if cached is not None and _remembered(cached):
        return cached
    doing = 'downloads' if cached is None else 'verifies'
    with lock(_locks() / f'{file}.verify.lock', f'{doing} {file}'):
        cached = _cached(file)
        if cached is None:
            return _download_to_cache(file, copies)
        _verify_cached(cached)
        return cached


def _verify_cached(cached: Path) -> str:
    """The sha256 of a cached file, which is read unless it was verified before."""
    known = _remembered(cached)
    if known is not None:
        return known
    content = cached.resolve()
    expected = _expected_of(cached, content.name)
    try:
        _verify(content, expected)
    except DownloadError:
        for path in (*_markers(cached), cached):
            with contextlib.suppress(OSError):
                path.unlink()
        raise
    _remember(cached, expected.sha256)
    return expected.sha256


def _expected_of(cached: Path, content_name: str) -> Expected:
    """What a cached file should be: by the name of its content, a record, or the hub."""
    if SHA256.fullmatch(content_name):
        return Expected(cached.name, content_name)
    # Without symbolic links the content lies in the snapshot itself, and its name tells nothing.
    for record in filter(None, map(read_record, _markers(cached))):
        return Expected(cached.name, record['sha256'], record['size'])
    with _needed_to_verify(cached):
        return _ask_hub(cached.name)


@contextlib.contextmanager
def _needed_to_verify(path: Path) -> Iterator[None]:
    """Tell that a file is there, where the hub cannot be asked whether it is the right one."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except Exception as error:
        offline = isinstance(error, OfflineModeIsEnabled) or _of_network(error)
        if not offline or isinstance(error, HfHubHTTPError):
            raise
        raise DownloadError(
            f'{path} cannot be verified offline: nothing here tells its sha256. When copying a '
            f'cache, take the hidden {RECORDS} with it; or give the path of the file '
            'instead of the name, which is used as it is'
        ) from error


def _download_to_cache(file: str, copies: int) -> Path:
    from huggingface_hub import hf_hub_download

    expected = _ask_hub(file)
    blob = repository_cache() / 'blobs' / expected.etag
    # The client's own lock: it may be downloading the same file for another program.
    with lock(_client_locks() / f'{expected.etag}.lock', f'downloads {file}'):
        if blob.exists():
            _verify(blob, expected)
        else:
            _complete(_stable_in_cache(expected), blob, expected, _verify, copies=copies)
    # The content is there: the client only links it.
    cached = Path(hf_hub_download(REPOSITORY, file))
    if not cached.samefile(blob):
        _verify(cached, expected)
    _remember(cached, expected.sha256)
    return cached


def _stable_in_cache(expected: Expected) -> Path:
    return repository_cache() / 'blobs' / f'{expected.etag}.incomplete'


# Records of files that were verified.


def _record_folders() -> list[Path]:
    return [repository_cache() / RECORDS, *_own_folders('verified')]


def _markers(cached: Path) -> list[Path]:
    """Where the record of a cached file may be; by commit, so that a copied cache keeps it."""
    return [f / cached.parent.name / f'{cached.name}.json' for f in _record_folders()]


def read_record(marker: Path) -> dict | None:
    """What :func:`write_record` wrote; None where there is nothing of the kind."""
    try:
        record = json.loads(marker.read_text())
        whole = SHA256.fullmatch(record['sha256']) and record['size'] >= 0 <= record['mtime_ns']
        return record if whole else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def write_record(marker: Path, path: Path, sha256: str) -> None:
    """Record that a file was found to have this content.

    Raises:
        OSError: it cannot be written.
    """
    stat = path.stat()
    record = dict(sha256=sha256, size=stat.st_size, mtime_ns=stat.st_mtime_ns)
    marker.parent.mkdir(parents=True, exist_ok=True)
    temporary = marker.with_name(f'{marker.name}.{uuid.uuid4().hex}.tmp')
    temporary.write_text(json.dumps(record))
    os.replace(temporary, marker)


def unchanged(path: Path, record: dict | None) -> bool:
    """Whether a file is there and has the size and the time of change that were recorded."""
    try:
        stat = path.stat()
    except OSError:
        return False
    found = (stat.st_size, stat.st_mtime_ns)
    return record is not None and found == (record['size'], record['mtime_ns'])


def _remembered(cached: Path) -> str | None:
    """The sha256 of a cached file that was verified, and has not changed since."""
    records = map(read_record, _markers(cached))
    return next((record['sha256'] for record in records if unchanged(cached, record)), None)


def _remember(cached: Path, sha256: str) -> None:
    for marker in _markers(cached):
        # If nothing can be written, the file is read once more at the next start.
        with contextlib.suppress(OSError):
            write_record(marker, cached, sha256)
            return


# A folder of the user's.


def _into_folder(file: str, folder: Path) -> Path:
    """Put a file into a folder.

    From the cache it is copied, not linked: a program that writes into the file must not change
    the cache. Its record and its lock lie hidden beside it.
    """
    if folder.exists() and not folder.is_dir():
        raise DownloadError(f'--dest: {folder} is a file, expected a folder')
    target, marker = folder / file, folder / f'.{file}.json'
    if _as_recorded(target, marker):
        return target
    cached = _cached(file)
    if cached is not None:
        expected = Expected(file, _verify_cached(cached), cached.stat().st_size)
    else:
        with _needed_to_verify(target) if target.exists() else contextlib.nullcontext():
            expected = _ask_hub(file)
    stable = _stable_in(folder, expected)
    with lock(folder / f'.{file}.lock', f'puts {file} into {folder}'):
        if target.exists():
            _require_same(target, expected)
        else:
            _complete(stable, target, expected, _require_same, source=cached)
    with contextlib.suppress(OSError):
        write_record(marker, target, expected.sha256)
    return target


def _as_recorded(target: Path, marker: Path) -> bool:
    """Whether a file in a folder is a published one, as far as can be told without the hub."""
    own = read_record(marker)
    if unchanged(target, own):
        return True
    others = [m for folder in _record_folders() for m in folder.glob(f'*/{target.name}.json')]
    records = [record for record in (own, *map(read_record, others)) if record]
    size = _size_of(target)
    if size not in [record['size'] for record in records]:
        return False
    sha256 = sha256_of(target, target.name)
    if sha256 not in [record['sha256'] for record in records]:
        return False
    with contextlib.suppress(OSError):
        write_record(marker, target, sha256)
    return True


def _stable_in(folder: Path, expected: Expected) -> Path:
    # Hidden, and of this version: a start of another one must not be continued.
    return folder / f'.{expected.file}.{expected.sha256[:8]}.incomplete'


def _require_same(target: Path, expected: Expected) -> None:
    """A file of the user's is never overwritten."""
    size = target.stat().st_size
    if size != expected.size:
        found = f'has {size} bytes instead of {expected.size}'
    elif (sha256 := sha256_of(target, expected.file)) != expected.sha256:
        found = f'has sha256 {sha256} instead of {expected.sha256}'
    else:
        return
    raise DownloadError(
        f'{target} is there already but is not the published file: it {found}; move it away, or '
        'give another folder'
    )


# Both.


def _ask_hub(file: str) -> Expected:
    """What the hub says a file is. Needs the network."""
    from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    metadata = get_hf_file_metadata(hf_hub_url(REPOSITORY, file))
    sha256, size, etag = metadata.etag, metadata.size, metadata.etag
    entries = []
    if not sha256 or not SHA256.fullmatch(sha256) or size is None:
        # A mirror may drop these headers; the list of files has both.
        with contextlib.suppress(HfHubHTTPError):
            entries = HfApi().get_paths_info(REPOSITORY, [file])
        lfs = next((entry.lfs for entry in entries if entry.path == file), None)
        sha256, size = (lfs.sha256, lfs.size) if lfs else (None, None)
    if not (sha256 and etag and metadata.commit_hash):
        raise DownloadError(
            f'{file}: {_endpoint()} names no sha256 or no commit for it, so it cannot be verified; '
            'HF_ENDPOINT should name a mirror that speaks the protocol of the Hugging Face hub'
        )
    url = hf_hub_url(REPOSITORY, file, revision=metadata.commit_hash)
    return Expected(file, sha256, size, etag, url)


def _complete(
    stable: Path,
    target: Path,
    expected: Expected,
    check: Callable[[Path, Expected], None],
    source: Path | None = None,
    copies: int = 1,
) -> None:
    """Fill a file up under a name of this process alone, verify it, give it its name.

    Args:
        stable: name of what an interrupted attempt leaves for a later process.
        target: final name, in the same file system.
        expected: what the file should be, ``size`` included.
        check: raises when ``target``, which another process made meanwhile, is not that.
        source: a copy to take instead of downloading.
        copies: see :func:`fetch`.
    """
    stable.parent.mkdir(parents=True, exist_ok=True)
    own = _adopt(stable)
    try:
        if (done := _size_of(own)) > expected.size:
            own.unlink()
            done = 0
        what = expected.file if copies == 1 else f'{expected.file} and its converted copy'
        _require_space(expected.size * copies - done, target.parent, what)
        if source is not None:
            shutil.copyfile(source, own)
        elif done < expected.size:
            _tell(f'downloading {expected.file} ({_readable(expected.size)}) from {_endpoint()}')
            _receive(own, expected)
        _verify(own, expected)
        _name(own, target, expected, check)
    except BaseException:
        with contextlib.suppress(OSError):
            os.replace(own, stable)
        raise
    for left in _abandoned(stable):
        with contextlib.suppress(OSError):
            left.unlink()


def _name(own: Path, target: Path, expected: Expected, check: Callable) -> None:
    """Give a verified file its name, or take the one that another process made meanwhile."""
    if not target.exists():
        try:
            publish(own, target)
            return
        except FileNotFoundError:  # another process had reason to think that this one is dead
            if not target.exists():
                raise
    check(target, expected)
    own.unlink(missing_ok=True)


def _abandoned(stable: Path) -> list[Path]:
    """What earlier processes left of a download, the longest first."""
    found = []
    for path in (stable, *stable.parent.glob(f'{stable.stem}.eva_mm-*.incomplete')):
        with contextlib.suppress(OSError):
            stat = path.stat()
            if path == stable or time.time() - stat.st_mtime > ABANDONED:
                found.append((stat.st_size, path))
    return [path for _, path in sorted(found, reverse=True)]


def _adopt(stable: Path) -> Path:
    """A partial file that is this process's alone: what others left, if they did, else none yet."""
    own = stable.with_name(f'{stable.stem}.eva_mm-{uuid.uuid4().hex}.incomplete')
    for left in _abandoned(stable):
        with contextlib.suppress(OSError):
            os.rename(left, own)
            os.utime(own)  # not abandoned any more
            break
    return own


def publish(own: Path, target: Path) -> None:
    """Rename a file once its content is on the disk, so that a crash leaves no empty one."""
    _sync(own)
    os.replace(own, target)
    with contextlib.suppress(OSError):  # not every system can do this for a folder
        _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _receive(partial: Path, expected: Expected) -> None:
    """Download what is missing of a file, anew as long as each attempt brings something.

    The client itself gives up when a connection is reset, which hours of downloading will see.
    """
    while True:
        before = _size_of(partial)
        try:
            return _receive_once(partial, expected)
        except Exception as error:
            if not _of_network(error) or _size_of(partial) <= before:
                raise
        time.sleep(1)


def _receive_once(partial: Path, expected: Expected) -> None:
    """One request; the client's bar and redirects."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    # Compressed bodies could not be continued.
    headers = {**build_hf_headers(), 'Accept-Encoding': 'identity'}
    with open(partial, 'ab') as stream:
        try:
            http_get(
                expected.url,
                stream,
                resume_size=stream.tell(),
                headers=headers,
                displayed_filename=expected.file,
            )
        except HfHubHTTPError as error:
            # 416: nothing begins where we want to continue; the size tells that afterwards.
            if error.response.status_code != 416:
                raise


def _verify(path: Path, expected: Expected) -> None:
    """Raise unless a file has the size and the sha256 that the hub names; it is removed then."""
    size = path.stat().st_size
    if expected.size is not None and size != expected.size:
        found = f'it has {size} bytes, but the hub names {expected.size}'
    elif (sha256 := sha256_of(path, expected.file)) != expected.sha256:
        found = f'its sha256 is {sha256}, but the hub names {expected.sha256}'
    else:
        return
    fate = 'the file was removed'
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        fate = f'remove the file, which could not be done here: {error.strerror}'
    raise DownloadError(
        f'{expected.file} is not what was published: {found}; {fate} ({path}). Try again; if it '
        f'happens again, {_endpoint()} or a proxy before it alters files: name another mirror by '
        'HF_ENDPOINT'
    )


def sha256_of(path: Path, file: str) -> str:
    """The sha256 of a file, with a bar under the name ``file`` on terminals."""
    from huggingface_hub.utils import tqdm

    digest = hashlib.sha256()
    bar = tqdm(
        total=path.stat().st_size,
        unit='B',
        unit_scale=True,
        desc=f'{file}: verifying',
        disable=None,  # where the output is no terminal
    )
    with open(path, 'rb') as stream, bar:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def _missing_bytes(file: str, dest: str | os.PathLike | None) -> int:
    """How much :func:`fetch` would write."""
    with _plain_errors(file):
        cached = _cached(file)
        if dest is None and cached is not None:
            return 0
        if dest is not None and (Path(dest) / file).exists():
            return 0
        if cached is not None:
            return cached.stat().st_size
        expected = _ask_hub(file)
        if dest is not None:
            stable = _stable_in(Path(dest), expected)
        else:
            stable = _stable_in_cache(expected)
            if stable.with_suffix('').exists():
                return 0
        return expected.size - max(map(_size_of, _abandoned(stable)), default=0)


def _folder_of(dest: str | os.PathLike | None) -> Path:
    return repository_cache() if dest is None else Path(dest)


def _require_space(needed: int, folder: Path, what: str) -> None:
    """Raise when a folder's disk has less room than is needed."""
    folder = folder.absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise DownloadError(
            f'{what}: {_readable(needed)} are needed in {folder}, but its disk has only '
            f'{_readable(free)} left; free {_readable(needed - free)}, or choose another folder: '
            '--dest DIR, or HF_HUB_CACHE for the cache'
        )


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _readable(size: int) -> str:
    return f'{size / 1e9:.2f} GB' if size >= 1e9 else f'{size / 1e6:.1f} MB'


def writable(folder: Path) -> bool:
    """Whether a folder takes files; it is made if needed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


@contextlib.contextmanager
def lock(path: Path, doing: str) -> Iterator[None]:
    """Wait for the other processes; not where nothing can be written, and so nothing clashes.

    Args:
        path: of the lock, whose file stays: others may be waiting for it.
        doing: what the other process does, for a line to whoever watches this one wait.
    """
    from filelock import Timeout
    from huggingface_hub.utils import WeakFileLock

    if not writable(path.parent):
        yield
        return
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(WeakFileLock(path, timeout=1))
        except Timeout:
            _tell(f'waiting for another process that {doing}')
            held.enter_context(WeakFileLock(path))
        except OSError:  # a lock of another user's, say; files stay whole without it
            pass
        yield


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


@contextlib.contextmanager
def _plain_errors(file: str) -> Iterator[None]:
    """Turn what the client and the system raise into one message for the user."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        yield
    except InputError:
        raise
    except OfflineModeIsEnabled as error:
        raise DownloadError(
            f'{file} is not in {repository_cache()}, and HF_HUB_OFFLINE forbids to download it; '
            f'unset it, or {BY_HAND}'
        ) from error
    except HfHubHTTPError as error:
        raise DownloadError(f'{file}: {_http_message(error)}') from error
    except Exception as error:
        # "Not found locally" of the client hides what happened on the network.
        cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
        if _of_network(cause):
            raise DownloadError(f'{file}: {_network_message(cause)}') from error
        if isinstance(error, OSError):
            raise DownloadError(f'{file}: {_system_message(error)}') from error
        raise


def _of_network(error: BaseException) -> bool:
    """Whether the HTTP library raised it: httpx, httpx2 or requests, as the client's version."""
    modules = {kind.__module__.partition('.')[0] for kind in type(error).__mro__}
    return not modules.isdisjoint({'httpx', 'httpx2', 'requests'})


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _system_message(error: OSError) -> str:
    where = error.filename or repository_cache()
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return (
            f'{where} cannot be written or read ({error.strerror}); choose another folder: '
            '--dest DIR, or HF_HUB_CACHE for the cache'
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f'the disk became full, or its quota ({where}); what has arrived is kept'
    return f'{error.strerror} ({where})' if error.strerror else _first_line(error)


def _network_message(error: BaseException) -> str:
    return (
        f'{_endpoint()} cannot be reached, or broke off ({_first_line(error)}). What has arrived '
        'is kept, and the same command continues. If the hub is out of reach from here, name a '
        f'mirror: HF_ENDPOINT=https://...; or {BY_HAND}'
    )


def _http_message(error: HfHubHTTPError) -> str:
    status = error.response.status_code if getattr(error, 'response', None) is not None else None
    if status in (401, 403):
        return (
            f'{_endpoint()} refuses access to {REPOSITORY} ({status}); is the token right? Unset '
            'HF_TOKEN if it is not needed, or set it to a token that may read, see '
            f'{_endpoint()}/settings/tokens'
        )
    if status == 404:
        return (
            f'{_endpoint()} has no such file in {REPOSITORY} (404); HF_ENDPOINT, if set, should '
            'name the hub or a complete mirror of it'
        )
    if status is None:
        return _first_line(error)
    return f'{_endpoint()} answers {status} ({_first_line(error)}); try again later'
