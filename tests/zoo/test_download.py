"""Downloads from a hub on this machine, in this process and by the tool."""

import hashlib
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants

from eva_mm.errors import InputError
from eva_mm.zoo import download
from eva_mm.zoo.download import DownloadError, cached_file, content_digest, fetch, fetch_all
from eva_mm.zoo.table import REPOSITORY

from .hub_server import MIB, serve

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / 'tools' / 'download.py'
NAME, FILE = 'eva_psz14', 'eva_psz14.pt'
OTHER, OTHER_FILE = 'eva_lvis', 'eva_lvis.pth'
# The client hands data on in pieces of 10 MiB: what a broken connection leaves of one is lost.
PIECE = constants.DOWNLOAD_CHUNK_SIZE


@pytest.fixture(scope='session')
def contents():
    random = np.random.default_rng(0)
    return {FILE: random.bytes(12 * MIB + 7), OTHER_FILE: random.bytes(MIB)}


@pytest.fixture
def hub(contents, tmp_path, monkeypatch):
    """A hub, and this process using it, with a cache of its own."""
    with serve(REPOSITORY, contents) as hub:
        use(monkeypatch, hub.endpoint, tmp_path / 'home' / 'hub')
        yield hub


def use(monkeypatch, endpoint, cache):
    # The client reads the environment once, when it is imported.
    monkeypatch.setattr(constants, 'ENDPOINT', endpoint)
    template = endpoint + '/{repo_id}/resolve/{revision}/{filename}'
    monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', template)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(cache))
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setenv('NO_PROXY', '127.0.0.1,localhost')
    monkeypatch.setenv('XDG_CACHE_HOME', str(Path(cache).parent / 'of_the_user'))
    for name in ('HF_TOKEN', 'HUGGING_FACE_HUB_TOKEN'):
        monkeypatch.delenv(name, raising=False)
    huggingface_hub.close_session()


def tool_environment(hub, home):
    return {
        **os.environ,
        'HF_ENDPOINT': hub if isinstance(hub, str) else hub.endpoint,
        'HF_HOME': str(home),
        'HF_HUB_CACHE': str(home / 'hub'),
        'NO_PROXY': '127.0.0.1,localhost',
    }


def start_tool(*args, hub, home):
    return start([TOOL, *args], hub, home)


def start(args, hub, home, **environment):
    """Run Python on this hub; what it tells goes to a file of its own, `process.told`."""
    home.mkdir(exist_ok=True)
    number = len(list(home.glob('*.told')))
    told = home / f'{number}.told'
    with open(told, 'w') as stream:
        process = subprocess.Popen(
            [sys.executable, *map(str, args)],
            env={**tool_environment(hub, home), **environment},
            cwd=ROOT,
            # A test started in the background of a shell ignores the signal, and so would this.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            stdout=subprocess.PIPE,
            stderr=stream,
            text=True,
        )
    process.told = told
    return process


def finish(process):
    """Output and what was told, once the process has ended."""
    out, _ = process.communicate(timeout=200)
    return out, process.told.read_text()


def run_main(*args):
    """The tool's `main` in this process."""
    return runpy.run_path(str(TOOL))['main']([str(arg) for arg in args])


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'waited in vain'
        time.sleep(0.02)


def files_under(folder):
    """All that holds data: no locks, no links, no records."""
    return sorted(
        path.name
        for path in Path(folder).rglob('*')
        if path.is_file()
        and not path.is_symlink()
        and path.suffix not in ('.lock', '.json', '.TAG', '.told')
        and 'refs' not in path.parts
    )


def blobs(cache=None):
    return files_under(Path(cache or constants.HF_HUB_CACHE) / 'models--BAAI--EVA' / 'blobs')


def test_a_file_is_downloaded_once_and_read_once(hub, contents, monkeypatch):
    assert cached_file(NAME) is None
    assert hub.requests == []
    path = fetch(f'eva://{NAME}')
    assert path.read_bytes() == contents[FILE]
    assert path.name == FILE
    assert len(hub.contents()) == 1
    count = len(hub.requests)
    monkeypatch.setattr(download, 'sha256_of', None)  # a second reading would fail
    assert fetch(NAME) == cached_file(NAME) == cached_file(NAME, download=True) == path
    assert content_digest(path) == hashlib.sha256(contents[FILE]).hexdigest()
    assert len(hub.requests) == count


def test_other_programs_find_the_file_in_the_cache(hub, contents):
    path = fetch(NAME)
    assert huggingface_hub.hf_hub_download(REPOSITORY, FILE) == str(path)
    report = huggingface_hub.scan_cache_dir(constants.HF_HUB_CACHE)
    assert report.warnings == []
    assert report.size_on_disk == len(contents[FILE])


def test_the_token_goes_to_the_hub_alone(hub, monkeypatch):
    monkeypatch.setenv('HF_TOKEN', 'hf_secret')
    fetch(OTHER)
    tokens = {(r.path.startswith('/storage/'), r.token) for r in hub.requests}
    assert tokens == {(False, 'Bearer hf_secret'), (True, None)}


def test_plain_http_is_used_for_files_in_the_newer_storage(hub):
    fetch(OTHER)
    assert not [r for r in hub.requests if r.path == '/xet-token']


def test_a_mirror_without_the_headers_of_large_files(hub, contents):
    hub.files[FILE].plain = True
    path = fetch(NAME)
    assert path.read_bytes() == contents[FILE]
    assert 'POST' in [r.method for r in hub.requests]
    hub.files[OTHER_FILE].plain = True
    hub.files[OTHER_FILE].sent = bytes(MIB)
    with pytest.raises(DownloadError, match='its sha256 is'):
        fetch(OTHER)


@pytest.mark.parametrize('reset', [False, True], ids=['ended', 'reset'])
def test_a_connection_that_breaks_is_continued(hub, contents, reset):
    hub.files[FILE].cut_after = 11 * MIB
    hub.files[FILE].reset = reset
    assert fetch(NAME).read_bytes() == contents[FILE]
    assert [r.range for r in hub.contents()] == [None, f'bytes={PIECE}-']


@pytest.mark.parametrize('to_folder', [False, True], ids=['cache', 'folder'])
def test_an_interrupted_download_is_continued(hub, contents, tmp_path, to_folder):
    """Ctrl-C; then a new process."""
    home, folder = tmp_path / 'home', tmp_path / 'weights'
    args = (NAME, '--dest', folder) if to_folder else (NAME,)
    file = hub.files[FILE]
    file.hold_after = 11 * MIB
    process = start_tool(*args, hub=hub, home=home)
    partial = (folder if to_folder else home).rglob
    wait_for(lambda: any(p.stat().st_size >= PIECE for p in partial('*.incomplete')))
    process.send_signal(signal.SIGINT)
    out, err = finish(process)
    assert process.returncode == 130, err
    begun, told = err.splitlines()
    assert begun.startswith(f'downloading {FILE} (')
    assert told == 'download.py: interrupted; the same command continues where this one stopped'
    assert not list(tmp_path.rglob(FILE))
    assert [name for name in files_under(tmp_path) if not name.endswith('.incomplete')] == []

    file.go.set()
    process = start_tool(*args, hub=hub, home=home)
    out, err = finish(process)
    assert process.returncode == 0, err
    (path,) = tmp_path.rglob(FILE)
    assert path.read_bytes() == contents[FILE]
    assert out == f'{FILE}: {path} (12.6 MB, sha256 verified)\n'
    assert [r.range for r in hub.contents()] == [None, f'bytes={PIECE}-']
    assert not list(tmp_path.rglob('*.incomplete'))
    if to_folder:
        assert files_under(folder) == [FILE]


CLIENT = f'import huggingface_hub as h; h.hf_hub_download({REPOSITORY!r}, {FILE!r})'


@pytest.mark.parametrize('to', ['cache', 'folder'])
@pytest.mark.parametrize('first', ['tool', 'client'])
def test_two_processes_download_once(hub, contents, tmp_path, first, to):
    """Two of ours into the same place; or a program that uses the client, and one of ours."""
    if first == 'client' and to == 'folder':
        pytest.skip('the client writes into the cache')
    home, folder = tmp_path / 'home', tmp_path / 'weights'
    args = [TOOL, NAME, *(['--dest', folder] if to == 'folder' else [])]
    file = hub.files[FILE]
    file.hold_after = MIB
    one = start(['-c', CLIENT] if first == 'client' else args, hub, home, HF_HUB_DISABLE_XET='1')
    wait_for(hub.contents)
    two = start(args, hub, home)
    # The server holds the first one's content until the second waits for it, or asks as well.
    wait_for(lambda: 'waiting' in two.told.read_text() or len(hub.contents()) > 1)
    file.go.set()
    for process in (one, two):
        _, err = finish(process)
        assert process.returncode == 0, err
    doing = f'puts {FILE} into {folder}' if to == 'folder' else f'downloads {FILE}'
    assert err == f'waiting for another process that {doing}\n'
    assert len(hub.contents()) == 1
    path = folder / FILE if to == 'folder' else cached_file(NAME)
    assert path.read_bytes() == contents[FILE]


WITHOUT_LOCKS = """
import contextlib, sys
from huggingface_hub import file_download, utils
utils.WeakFileLock = file_download.WeakFileLock = lambda *a, **k: contextlib.nullcontext()
from eva_mm.zoo.download import fetch
print(fetch(*sys.argv[1:]))
"""


@pytest.mark.parametrize('to', ['cache', 'folder'])
def test_two_processes_where_locks_do_nothing(hub, contents, tmp_path, to):
    """As on some shared file systems."""
    folder = tmp_path / 'weights'
    args = ['-c', WITHOUT_LOCKS, NAME, *([folder] if to == 'folder' else [])]
    file = hub.files[FILE]
    file.hold_after = 11 * MIB
    processes = [start(args, hub, tmp_path / 'home') for _ in range(2)]
    wait_for(lambda: len(hub.contents()) == 2)
    wait_for(lambda: len(list(tmp_path.rglob('*.incomplete'))) == 2)
    file.go.set()
    results = [finish(process) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    (path,) = {Path(out.strip()) for out, _ in results}
    assert path.read_bytes() == contents[FILE]
    assert not list(tmp_path.rglob('*.incomplete'))
    assert not list(tmp_path.rglob('*.tmp'))


def test_what_a_killed_process_left_is_continued(hub, contents):
    """Once it has not changed for a while: another process may be writing into it."""
    folder = Path(constants.HF_HUB_CACHE) / 'models--BAAI--EVA' / 'blobs'
    folder.mkdir(parents=True)
    sha256 = hub.files[FILE].sha256
    old, older, young = (folder / f'{sha256}.eva_mm-{n}.incomplete' for n in 'abc')
    for path, size in ((old, 5 * MIB), (older, 3 * MIB), (young, 7 * MIB)):
        path.write_bytes(contents[FILE][:size])
    for path in (old, older):
        os.utime(path, (time.time() - 1000,) * 2)
    assert fetch(NAME).read_bytes() == contents[FILE]
    assert [r.range for r in hub.contents()] == [f'bytes={5 * MIB}-']
    assert list(folder.glob('*.incomplete')) == [young]


def test_a_file_that_another_process_finished_first(hub, contents, tmp_path, monkeypatch):
    """In a folder of the user's, something else under its name is not overwritten."""
    receive = download._receive

    def slow(own, expected):
        receive(own, expected)
        (tmp_path / OTHER_FILE).write_bytes(found)

    monkeypatch.setattr(download, '_receive', slow)
    found = contents[OTHER_FILE]
    assert fetch(OTHER, tmp_path).read_bytes() == found
    assert not list(tmp_path.glob('.*.incomplete'))
    (tmp_path / OTHER_FILE).unlink()
    found = b'mine'
    with pytest.raises(DownloadError, match='is there already'):
        fetch(OTHER, tmp_path)
    assert (tmp_path / OTHER_FILE).read_bytes() == b'mine'


def test_a_tampered_file_of_equal_size_is_removed(hub, contents):
    tampered = bytearray(contents[FILE])
    tampered[-1] ^= 1
    hub.files[FILE].sent = bytes(tampered)
    found, named = (hashlib.sha256(data).hexdigest() for data in (tampered, contents[FILE]))
    with pytest.raises(DownloadError, match=f'{FILE} is not what .*{found}.*{named}.*removed'):
        fetch(NAME)
    assert blobs() == []
    assert cached_file(NAME) is None
    hub.files[FILE].sent = None
    assert fetch(NAME).read_bytes() == contents[FILE]


def test_a_tampered_file_that_the_client_took_is_removed(hub, contents, monkeypatch):
    """The client compares the size alone."""
    monkeypatch.setattr(constants, 'HF_HUB_DISABLE_XET', True)
    hub.files[OTHER_FILE].sent = bytes(MIB)
    taken = Path(huggingface_hub.hf_hub_download(REPOSITORY, OTHER_FILE))
    assert taken.read_bytes() == bytes(MIB)
    with pytest.raises(DownloadError, match='its sha256 is'):
        fetch(OTHER)
    assert not taken.is_symlink()
    assert blobs() == []
    hub.files[OTHER_FILE].sent = None
    assert fetch(OTHER).read_bytes() == contents[OTHER_FILE]


def test_a_verified_file_that_changes_is_noticed(hub, contents):
    path = fetch(OTHER)
    content = path.resolve()
    time.sleep(0.02)  # a time of change of its own
    content.write_bytes(bytes(MIB))
    with pytest.raises(DownloadError, match='its sha256 is'):
        fetch(OTHER)
    assert not path.is_symlink()
    assert not content.exists()
    assert fetch(OTHER).read_bytes() == contents[OTHER_FILE]


@pytest.mark.parametrize('change', [-MIB, MIB], ids=['short', 'long'])
def test_a_file_of_wrong_size_is_removed(hub, contents, change):
    size = len(contents[FILE])
    hub.files[FILE].sent = (contents[FILE] + bytes(MIB))[: size + change]
    with pytest.raises(
        DownloadError, match=f'it has {size + change} bytes, but the hub names {size}'
    ):
        fetch(NAME)
    assert blobs() == []
    assert cached_file(NAME) is None


def test_a_start_of_something_else_does_not_stay(hub, contents):
    """What was kept of an earlier attempt is verified with the rest."""
    folder = Path(constants.HF_HUB_CACHE) / 'models--BAAI--EVA' / 'blobs'
    folder.mkdir(parents=True)
    partial = folder / f'{hub.files[OTHER_FILE].sha256}.incomplete'
    partial.write_bytes(bytes(1000))
    with pytest.raises(DownloadError, match='its sha256 is'):
        fetch(OTHER)
    assert [r.range for r in hub.contents()] == ['bytes=1000-']
    assert fetch(OTHER).read_bytes() == contents[OTHER_FILE]
    # The hub sends less than was kept, which it refuses by a status of its own.
    shutil.rmtree(constants.HF_HUB_CACHE)
    folder.mkdir(parents=True)
    partial.write_bytes(bytes(1000))
    hub.files[OTHER_FILE].sent = b'short'
    with pytest.raises(DownloadError, match=f'it has 1000 bytes, but the hub names {MIB}'):
        fetch(OTHER)
    hub.files[OTHER_FILE].sent = None
    # Too long already: begun anew.
    shutil.rmtree(constants.HF_HUB_CACHE)
    folder.mkdir(parents=True)
    partial.write_bytes(bytes(2 * MIB))
    assert fetch(OTHER).read_bytes() == contents[OTHER_FILE]
    assert hub.contents()[-1].range is None


@pytest.mark.parametrize(
    ('status', 'message'),
    [
        ((401, ''), r'refuses access to BAAI/EVA \(401\).*HF_TOKEN'),
        ((403, 'GatedRepo'), r'refuses access to BAAI/EVA \(403\).*HF_TOKEN'),
        ((403, ''), r'refuses access to BAAI/EVA \(403\).*HF_TOKEN'),
        ((404, 'EntryNotFound'), r'has no such file in BAAI/EVA \(404\).*HF_ENDPOINT'),
        ((404, 'RepoNotFound'), r'has no such file in BAAI/EVA \(404\).*HF_ENDPOINT'),
        ((503, ''), r'answers 503 .*later'),
    ],
)
def test_refusals(hub, status, message):
    hub.files[FILE].status = status
    with pytest.raises(DownloadError, match=f'^{FILE}: {hub.endpoint} {message}') as raised:
        fetch(NAME)
    assert '\n' not in str(raised.value)


def test_a_file_that_the_hub_does_not_have(hub):
    with pytest.raises(DownloadError, match=r'eva_coco_det.pth: .* no such file in BAAI/EVA'):
        fetch('eva_coco_det')
    with pytest.raises(InputError, match="'eva_huge'"):
        fetch('eva_huge')


@pytest.fixture
def nowhere():
    """An address at which nothing listens."""
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        yield f'http://127.0.0.1:{taken.getsockname()[1]}'


def test_no_network(nowhere, tmp_path, monkeypatch):
    use(monkeypatch, nowhere, tmp_path)
    message = f'^{FILE}: {nowhere} cannot be reached.*name a mirror: HF_ENDPOINT=.*another machine'
    with pytest.raises(DownloadError, match=message) as raised:
        fetch(NAME)
    assert '\n' not in str(raised.value)
    assert files_under(tmp_path) == []


def test_offline(hub, contents, tmp_path, monkeypatch):
    path = fetch(OTHER)
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    count = len(hub.requests)
    assert fetch(OTHER) == path
    # Not verified before, as when another program downloaded it: its name in the cache tells.
    shutil.rmtree(path.parents[2] / '.verified')
    assert fetch(OTHER) == path
    assert fetch(OTHER, tmp_path / 'copy').read_bytes() == contents[OTHER_FILE]
    with pytest.raises(DownloadError, match=f'{FILE} is not in .*HF_HUB_OFFLINE forbids'):
        fetch(NAME)
    assert len(hub.requests) == count


def test_a_cache_without_links_works_offline_too(hub, contents, monkeypatch):
    monkeypatch.setattr(constants, 'HF_HUB_DISABLE_SYMLINKS', True)
    path = fetch(OTHER)
    assert not path.is_symlink()
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    assert fetch(OTHER) == path
    time.sleep(0.02)
    path.write_bytes(bytes(MIB))
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    with pytest.raises(DownloadError, match='its sha256 is'):
        fetch(OTHER)
    assert not path.exists()


def copy_cache(folder):
    """A copy as of `rsync -L` or zip: without links and times."""
    shutil.copytree(constants.HF_HUB_CACHE, folder, copy_function=shutil.copyfile)
    shutil.rmtree(folder / 'models--BAAI--EVA' / 'blobs')
    return folder


def test_a_copied_cache_works_offline(hub, contents, tmp_path, monkeypatch):
    fetch(OTHER)
    cache = copy_cache(tmp_path / 'copy')
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(cache))
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    path = fetch(OTHER)
    assert path.is_relative_to(cache)
    assert path.read_bytes() == contents[OTHER_FILE]
    readings = count_readings(monkeypatch)
    assert fetch(OTHER) == path
    assert readings == []
    shutil.rmtree(cache / 'models--BAAI--EVA' / '.verified')
    with pytest.raises(DownloadError, match=f'{path} cannot be verified offline.*.verified with'):
        fetch(OTHER)
    assert path.exists()


def test_a_copied_cache_without_network(nowhere, hub, tmp_path, monkeypatch):
    fetch(OTHER)
    cache = copy_cache(tmp_path / 'copy')
    use(monkeypatch, nowhere, cache)
    path = fetch(OTHER)
    shutil.rmtree(cache / 'models--BAAI--EVA' / '.verified')
    with pytest.raises(DownloadError, match=f'{path} cannot be verified offline'):
        fetch(OTHER)


def test_a_copied_cache_with_a_damaged_file(hub, tmp_path, monkeypatch):
    fetch(OTHER)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(copy_cache(tmp_path / 'copy')))
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    cached_file(OTHER).write_bytes(bytes(MIB))
    with pytest.raises(DownloadError, match='its sha256 is'):
        fetch(OTHER)
    assert cached_file(OTHER) is None


def test_a_file_in_a_folder_works_offline(hub, contents, tmp_path, monkeypatch):
    folder, copy = tmp_path / 'weights', tmp_path / 'copy'
    fetch(OTHER, folder)
    shutil.copytree(folder, copy, copy_function=shutil.copyfile)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'empty'))
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    for place in (folder, copy):
        assert fetch(OTHER, place).read_bytes() == contents[OTHER_FILE]
    (copy / f'.{OTHER_FILE}.json').unlink()
    with pytest.raises(DownloadError, match='cannot be verified offline'):
        fetch(OTHER, copy)
    assert (copy / OTHER_FILE).exists()


def test_a_record_in_the_cache_serves_a_folder(hub, contents, tmp_path, monkeypatch):
    shutil.rmtree(fetch(OTHER).parents[1])
    (tmp_path / OTHER_FILE).write_bytes(contents[OTHER_FILE])
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    assert fetch(OTHER, tmp_path) == tmp_path / OTHER_FILE


def test_files_of_older_commits_count(hub):
    path = fetch(OTHER)
    hub.commit = 'f' * 40
    newer = fetch(NAME)
    assert newer.parent != path.parent
    count = len(hub.requests)
    assert cached_file(OTHER) == fetch(OTHER) == path
    # Of several, one that was verified.
    unverified = path.parents[1] / 'another' / path.name
    unverified.parent.mkdir()
    unverified.write_bytes(b'not read')
    assert cached_file(OTHER) == path
    assert len(hub.requests) == count


def count_readings(monkeypatch):
    readings = []
    sha256_of = download.sha256_of
    monkeypatch.setattr(
        download, 'sha256_of', lambda *args: readings.append(args) or sha256_of(*args)
    )
    return readings


def refuse_writing(folder):
    """Put a file in the place of a folder: nothing can be made in it, not even by root."""
    if folder.is_dir():
        shutil.rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.touch()


def test_a_cache_that_cannot_be_written_is_read_once(hub, tmp_path, monkeypatch):
    path = fetch(OTHER)
    refuse_writing(path.parents[2] / '.verified')
    refuse_writing(Path(constants.HF_HUB_CACHE) / '.locks')
    readings = count_readings(monkeypatch)
    for _ in range(3):
        assert fetch(OTHER) == path
        assert content_digest(path) == hub.files[OTHER_FILE].sha256
    assert len(readings) == 1
    # Not even the user's own folder: neither an error, nor a record.
    refuse_writing(Path(os.environ['XDG_CACHE_HOME']))
    monkeypatch.setattr(download.tempfile, 'gettempdir', lambda: os.environ['XDG_CACHE_HOME'])
    assert fetch(OTHER) == path
    assert len(readings) == 2


def test_a_lock_that_cannot_be_had(hub, contents):
    """As another user's; files stay whole without it."""
    locks = Path(constants.HF_HUB_CACHE) / '.locks' / 'models--BAAI--EVA'
    (locks / f'{OTHER_FILE}.verify.lock').mkdir(parents=True)
    assert fetch(OTHER).read_bytes() == contents[OTHER_FILE]


def test_a_place_that_cannot_be_written(hub, tmp_path, monkeypatch):
    refuse_writing(tmp_path / 'file')
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'file' / 'hub'))
    with pytest.raises(DownloadError, match=f'{tmp_path}/file/.* cannot be written.*--dest DIR'):
        fetch(OTHER)


def test_a_cached_file_is_read_by_one_alone(hub, monkeypatch):
    """The locks are between open files, so threads stand for processes."""
    path = fetch(OTHER)
    shutil.rmtree(path.parents[2] / '.verified')
    readings = count_readings(monkeypatch)
    told = []
    monkeypatch.setattr(download, '_tell', told.append)
    sha256_of = download.sha256_of

    def slow(*args):
        result = sha256_of(*args)
        wait_for(lambda: len(told) == 3 or len(readings) > 1)
        return result

    monkeypatch.setattr(download, 'sha256_of', slow)
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(fetch, [OTHER] * 4)) == {path}
    assert len(readings) == 1
    assert told == [f'waiting for another process that verifies {OTHER_FILE}'] * 3


def set_free(monkeypatch, size):
    usage = namedtuple('usage', 'total used free')
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage(10**12, 0, size))


@pytest.mark.parametrize('to_folder', [False, True], ids=['cache', 'folder'])
def test_too_little_disk(hub, tmp_path, monkeypatch, to_folder):
    folder = tmp_path / 'weights' if to_folder else None
    place = folder or Path(constants.HF_HUB_CACHE)
    set_free(monkeypatch, 12 * MIB)
    with pytest.raises(
        DownloadError, match=f'12.6 MB are needed in {place}.* 12.6 MB left; .*--dest DIR'
    ):
        fetch(NAME, folder)
    set_free(monkeypatch, 13 * MIB)
    with pytest.raises(DownloadError, match=f'these 2 files: 13.6 MB are needed in {place}'):
        fetch_all([NAME, OTHER], folder)
    assert hub.contents() == []
    set_free(monkeypatch, 14 * MIB)
    assert fetch_all([NAME, OTHER], folder, report=lambda text: None) == []
    # Nothing is missing any more.
    set_free(monkeypatch, 0)
    assert fetch_all([NAME, OTHER], folder, report=lambda text: None) == []


def test_room_for_a_converted_copy(hub, monkeypatch):
    set_free(monkeypatch, 20 * MIB)
    with pytest.raises(DownloadError, match='and its converted copy: 25.2 MB are needed'):
        fetch(NAME, copies=2)
    assert hub.contents() == []
    set_free(monkeypatch, 25 * MIB)
    fetch(NAME, copies=2)


def test_what_has_arrived_needs_no_room(hub, contents, tmp_path, monkeypatch):
    partial = tmp_path / f'.{FILE}.{hub.files[FILE].sha256[:8]}.incomplete'
    partial.write_bytes(contents[FILE][: 10 * MIB])
    set_free(monkeypatch, 3 * MIB)
    assert fetch(NAME, tmp_path).read_bytes() == contents[FILE]


def test_into_a_folder(hub, contents, tmp_path):
    folder = tmp_path / 'a' / 'weights'
    path = fetch(OTHER, folder)
    assert path == folder / OTHER_FILE
    assert path.read_bytes() == contents[OTHER_FILE]
    assert files_under(folder) == [OTHER_FILE]
    assert cached_file(OTHER) is None
    assert fetch(OTHER, folder) == path
    assert len(hub.contents()) == 1


def test_a_file_of_the_users_is_not_overwritten(hub, contents, tmp_path):
    mine = tmp_path / OTHER_FILE
    for content in (bytes(MIB), b'mine'):
        mine.write_bytes(content)
        with pytest.raises(DownloadError, match=f'{mine} is there already .*move it away'):
            fetch(OTHER, tmp_path)
        assert mine.read_bytes() == content
    with pytest.raises(DownloadError, match='is a file, expected a folder'):
        fetch(OTHER, mine)
    assert hub.contents() == []


def test_the_copy_of_a_cached_file_is_the_users_own(hub, contents, tmp_path):
    cached = fetch(OTHER)
    path = fetch(OTHER, tmp_path / 'weights')
    assert len(hub.contents()) == 1
    path.write_bytes(b'changed')
    assert cached.read_bytes() == contents[OTHER_FILE]


def test_one_that_fails_does_not_stop_the_others(hub, contents, tmp_path, capsys):
    hub.files[FILE].sent = bytes(len(contents[FILE]))
    names = ('eva_huge', 'eva_coco_det', NAME, OTHER)
    assert run_main(*names, '--dest', tmp_path / 'weights') == 1
    out, err = capsys.readouterr()
    assert files_under(tmp_path / 'weights') == [OTHER_FILE]
    errors = [line for line in err.splitlines() if not line.startswith('downloading ')]
    assert [line.split(':')[0] for line in errors] == ['download.py'] * 3
    told = zip(("'eva_huge'", 'eva_coco_det.pth', FILE), errors)
    assert all(text in line for text, line in told)
    summary = f'1 of 4 checkpoints are there; failed: eva_huge, eva_coco_det, {NAME}'
    assert out.splitlines()[1:] == [summary]


def test_all_of_a_task(hub, capsys):
    assert run_main('--all', '--task', 'detection') == 1
    out, _ = capsys.readouterr()
    assert f'{OTHER_FILE}: {cached_file(OTHER)}' in out
    assert 'failed: eva_o365' in out
    assert cached_file(NAME) is None


def test_the_tool_tells_mistakes_in_one_line(nowhere, tmp_path):
    """In a process of its own, which reads the environment; and the list needs no network."""
    environment = dict(hub=nowhere, home=tmp_path / 'home')
    processes = [
        start_tool(*args, **environment)
        for args in (
            [NAME],
            ['--list'],
            ['--list', '--task', 'detection'],
            ['--all', '--task', 'x'],
        )
    ]
    results = [(*finish(process), process.returncode) for process in processes]
    failed, listed, of_task, mistake = results
    assert failed[2] == mistake[2] == 1
    assert failed[0] == mistake[0] == ''
    assert failed[1].startswith(f'download.py: {FILE}: {nowhere} cannot be reached')
    assert mistake[1].startswith("download.py: --task: no checkpoint is for 'x', expected one of")
    assert failed[1].count('\n') == mistake[1].count('\n') == 1
    assert listed[1:] == of_task[1:] == ('', 0)
    assert NAME in listed[0].split()
    assert OTHER in of_task[0].split()
    assert NAME not in of_task[0].split()


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ([], 'give a NAME'),
        ([NAME, '--all'], 'give either'),
        ([NAME, '--list'], 'give either'),
        (['--list', '--dest', 'x'], '--list downloads nothing'),
        ([NAME, '--task', 'detection'], '--task goes with'),
    ],
)
def test_contradictions_on_the_command_line(args, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_main(*args)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
