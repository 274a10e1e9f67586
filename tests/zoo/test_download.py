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
    return subprocess.Popen(
        [sys.executable, TOOL, *map(str, args)],
        env=tool_environment(hub, home),
        cwd=home.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


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
        and path.suffix not in ('.lock', '.json', '.TAG')
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
    monkeypatch.setattr(download, '_sha256_of', None)  # a second reading would fail
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
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert err == 'download.py: interrupted; the same command continues where this one stopped\n'
    assert not list(tmp_path.rglob(FILE))
    assert [name for name in files_under(tmp_path) if not name.endswith('.incomplete')] == []

    file.go.set()
    process = start_tool(*args, hub=hub, home=home)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    (path,) = tmp_path.rglob(FILE)
    assert path.read_bytes() == contents[FILE]
    assert out == f'{FILE}: {path} (12.6 MB, sha256 verified)\n'
    assert [r.range for r in hub.contents()] == [None, f'bytes={PIECE}-']
    assert not list(tmp_path.rglob('*.incomplete'))
    if to_folder:
        assert [p.name for p in folder.iterdir()] == [FILE]  # no lock stays


@pytest.mark.parametrize('second', ['cache', 'folder', 'client'])
def test_two_processes_download_once(hub, contents, tmp_path, second):
    """Two of ours into the same place; or one of ours, and a program that uses the client."""
    home, folder = tmp_path / 'home', tmp_path / 'weights'
    args = (NAME, '--dest', folder) if second == 'folder' else (NAME,)
    file = hub.files[FILE]
    file.hold_after = MIB
    processes = [start_tool(*args, hub=hub, home=home)]
    wait_for(hub.contents)
    if second == 'client':
        code = f'import huggingface_hub as h; h.hf_hub_download({REPOSITORY!r}, {FILE!r})'
        environment = {**tool_environment(hub, home), 'HF_HUB_DISABLE_XET': '1'}
        processes.append(subprocess.Popen([sys.executable, '-c', code], env=environment))
    else:
        processes.append(start_tool(*args, hub=hub, home=home))
    time.sleep(1.5)  # for the second one to ask for the content as well, which it must not
    file.go.set()
    for process in processes:
        _, err = process.communicate(timeout=30)
        assert process.returncode == 0, err
    assert len(hub.contents()) == 1
    path = folder / FILE if second == 'folder' else cached_file(NAME)
    assert path.read_bytes() == contents[FILE]


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
        content_digest(path)
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


def test_a_cached_file_is_read_by_one_alone(hub, monkeypatch):
    """The locks are between open files, so threads stand for processes."""
    path = fetch(OTHER)
    shutil.rmtree(path.parents[2] / '.verified')
    readings = []
    sha256_of = download._sha256_of

    def slow(*args):
        readings.append(args)
        time.sleep(0.3)
        return sha256_of(*args)

    monkeypatch.setattr(download, '_sha256_of', slow)
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(fetch, [OTHER] * 4)) == {path}
    assert len(readings) == 1


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
    assert list(folder.iterdir()) == [path]
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
    assert [p.name for p in (tmp_path / 'weights').glob('*.p*')] == [OTHER_FILE]
    errors = err.splitlines()
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
    results = [(*process.communicate(timeout=60), process.returncode) for process in processes]
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
