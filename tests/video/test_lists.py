"""Lists from folders: labels, duplicates, leaks, broken files, and the tool that writes them."""

import os
import subprocess
import sys

import pytest

from eva_mm.errors import InputError, MissingFileError, UsageError
from eva_mm.video import lists
from eva_mm.video.lists import (
    BROKEN,
    DUPLICATE,
    LEAK,
    OTHER_CLASS,
    excluded_ids,
    find_videos,
    identity_of,
    why_unreadable,
    write_list,
)

from ..helpers import ROOT
from .small import put_index_first, write_video

IDS = ('-5NN5hdIwTc', 'aaaaaaaaaa0', 'bbbb_bbb-b1', 'cccccccccc2')


@pytest.fixture
def folder(tmp_path):
    """Two classes of training videos, and validation videos of one more class."""

    def put(path, frames=4):
        return write_video(tmp_path / path, frames, (64, 48))

    put(f'train/arm wrestling/{IDS[0]}_000038_000048.mp4')
    put(f'train/arm wrestling/{IDS[0]}_000138_000148.mp4')  # another part of the same video
    put(f'train/arm wrestling/{IDS[1]}_000020_000030.mp4')
    put(f'train/zumba/{IDS[1]}_000001_000011.mp4')
    put(f'train/zumba/{IDS[2]}_000001_000011.mp4')
    put(f'train/zumba/{IDS[3]}_000001_000011.mp4')
    broken = put('train/zumba/my own dance.mp4', 12)
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    put(f'val/zumba/{IDS[2]}_000099_000109.mp4')
    (tmp_path / 'train' / 'zumba' / 'notes.txt').touch()
    (tmp_path / 'train' / '.hidden').mkdir()
    return tmp_path


def left_out(report):
    return {(os.path.basename(video.path), video.reason) for video in report.left}


def test_names_of_kinetics():
    assert identity_of(f'a/b/{IDS[0]}_000038_000048.mp4') == IDS[0]
    assert identity_of(f'{IDS[2]}.mkv', youtube_ids=True) == IDS[2]
    # As many characters as an id.
    assert identity_of('video_00001.mp4') is None
    for other in ('v_archery_g01_c01.avi', f'{IDS[0]}_38_48.mp4', 'short.mp4', f'{IDS[0]}x.mp4'):
        assert identity_of(other) is None
        assert identity_of(other, youtube_ids=True) is None


def test_names_of_eleven_characters(tmp_path):
    for path in ('train/a/video_00001.mp4', 'train/b/video_00001.mp4', 'val/a/video_00001.mp4'):
        write_video(tmp_path / path, 4, (64, 48))
    options = dict(exclude=[str(tmp_path / 'val')], decode=False)
    report = write_list([str(tmp_path / 'train')], str(tmp_path / 'train.txt'), **options)
    assert (report.number, report.left) == (2, [])
    (tmp_path / 'ids.txt').write_text('val/a/video_00001.mp4 0\n')
    assert excluded_ids(tmp_path / 'ids.txt') == {str(tmp_path / 'val/a/video_00001.mp4')}
    assert excluded_ids(tmp_path / 'ids.txt', youtube_ids=True) == {'video_00001'}
    options = dict(decode=False, youtube_ids=True)
    report = write_list([str(tmp_path / 'train')], str(tmp_path / 'train.txt'), **options)
    assert [video.reason for video in report.left] == [OTHER_CLASS]


def test_labels_follow_an_unsorted_file_which_stays(folder):
    names = folder / 'classes.txt'
    names.write_text('zumba\n\narm wrestling\n')
    options = dict(decode=False)
    report = write_list([str(folder / 'train')], str(folder / 'train.txt'), **options)
    assert report.classes == ['zumba', 'arm wrestling']
    assert names.read_text() == 'zumba\n\narm wrestling\n'
    labels = {
        line.split('/')[1]: line[-1]
        for line in (folder / 'train.txt').open().read().split('\n')[:-1]
    }
    assert labels == {'zumba': '0', 'arm wrestling': '1'}
    before = (folder / 'train.txt').read_bytes()
    message = "other classes, or another order: class 0 is 'arm wrestling' in the former, 'zumba'"
    with pytest.raises(InputError, match=message):
        write_list([str(folder / 'train')], str(folder / 'train.txt'), **options,
                   classes=str(folder / 'train'))  # fmt: skip
    assert (folder / 'train.txt').read_bytes() == before
    # A file that is given elsewhere tells the order too.
    write_list([str(folder / 'train')], str(folder / 'new' / 'train.txt'), **options,
               classes=str(names))  # fmt: skip
    assert (folder / 'new' / 'classes.txt').read_text() == 'zumba\narm wrestling\n'


def test_list_is_cleaned(folder):
    report = write_list([str(folder / 'train')], str(folder / 'train.txt'),
                        exclude=[str(folder / 'val')])  # fmt: skip
    assert report.classes == ['arm wrestling', 'zumba']
    assert (folder / 'classes.txt').read_text() == 'arm wrestling\nzumba\n'
    assert (folder / 'train.txt').read_text().splitlines() == [
        f'train/arm wrestling/{IDS[0]}_000038_000048.mp4 0',
        f'train/arm wrestling/{IDS[1]}_000020_000030.mp4 0',
        f'train/zumba/{IDS[3]}_000001_000011.mp4 1',
    ]
    assert left_out(report) == {
        (f'{IDS[0]}_000138_000148.mp4', DUPLICATE),
        (f'{IDS[1]}_000001_000011.mp4', OTHER_CLASS),
        (f'{IDS[2]}_000001_000011.mp4', LEAK),
        ('my own dance.mp4', BROKEN),
    }
    rows = [line.split('\t') for line in (folder / 'train_left_out.tsv').read_text().splitlines()]
    assert {(os.path.basename(path), reason) for reason, path, _ in rows} == left_out(report)
    assert all(detail for *_, detail in rows)
    text = report.text('train.txt')
    assert text.startswith('train.txt: 3 videos of 2 classes\n')
    for reason in (DUPLICATE, OTHER_CLASS, LEAK, BROKEN):
        assert f'left out: 1 {reason}, as ' in text


def test_duplicates_and_broken_ones_may_stay(folder):
    report = write_list([str(folder / 'train')], str(folder / 'train.txt'), keep_duplicates=True,
                        decode=False)  # fmt: skip
    assert (report.number, report.left) == (7, [])


def test_labels_of_a_second_list_are_those_of_the_first(folder):
    write_list([str(folder / 'train')], str(folder / 'train.txt'), decode=False)
    report = write_list([str(folder / 'val')], str(folder / 'val.txt'), decode=False)
    line = f'val/zumba/{IDS[2]}_000099_000109.mp4 1\n'
    assert (folder / 'val.txt').read_text() == line
    assert report.empty == ['arm wrestling']
    assert 'no video of 1 classes: arm wrestling' in report.text('val.txt')
    # Alone it would have made another one of them.
    write_list([str(folder / 'val')], str(folder / 'other' / 'val.txt'), decode=False)
    assert (folder / 'other' / 'val.txt').read_text() == f'../{line[:-2]}0\n'
    write_list([str(folder / 'val')], str(folder / 'more.txt'), root=str(folder / 'val'),
               classes=str(folder / 'train'), decode=False)  # fmt: skip
    assert (folder / 'more.txt').read_text() == line.removeprefix('val/')


def test_several_roots_make_one_union(folder):
    write_video(folder / 'k600' / 'knitting' / 'dddddddddd3.mp4', 4, (64, 48))
    roots = [str(folder / 'train'), str(folder / 'k600')]
    report = write_list(roots, str(folder / 'k722' / 'train.txt'), decode=False)
    assert report.classes == ['arm wrestling', 'knitting', 'zumba']
    last = (folder / 'k722' / 'train.txt').read_text().splitlines()[-1]
    assert last == '../k600/knitting/dddddddddd3.mp4 1'


def test_ids_of_tables_and_lists(folder):
    table = folder / 'k600_val.csv'
    table.write_text(f'label,youtube_id,time_start,time_end,split\nzumba,{IDS[0]},1,11,validate\n')
    assert excluded_ids(table) == {IDS[0]}
    (folder / 'ids.txt').write_text(f'{IDS[1]}\nval/zumba/{IDS[2]}_000001_000011.mp4 17\n')
    assert excluded_ids(folder / 'ids.txt') == {IDS[1], IDS[2]}
    (folder / 'own.txt').write_text('train/zumba/my own dance.mp4 1\n')
    report = write_list([str(folder / 'train')], str(folder / 'train.txt'), decode=False,
                        exclude=[str(folder / 'own.txt')])  # fmt: skip
    assert ('my own dance.mp4', LEAK) in left_out(report)
    table.write_text('label,id\n')
    with pytest.raises(InputError, match='column youtube_id, found label, id'):
        excluded_ids(table)
    with pytest.raises(MissingFileError, match='set to exclude not found'):
        excluded_ids(folder / 'none.txt')
    (folder / 'ids.txt').write_text('\n')
    with pytest.raises(InputError, match='no video in it'):
        excluded_ids(folder / 'ids.txt')


def test_what_cannot_be_listed(folder):
    with pytest.raises(MissingFileError, match='not found: .*nowhere'):
        find_videos(folder / 'nowhere')
    with pytest.raises(MissingFileError, match='is a file, not a folder'):
        find_videos(folder / 'train' / 'zumba' / 'notes.txt')
    with pytest.raises(InputError, match=r'outside of the class folders: expected .*CLASS/VIDEO'):
        find_videos(folder / 'val' / 'zumba')
    (folder / 'empty' / 'a').mkdir(parents=True)
    with pytest.raises(InputError, match=r'no video below .*\.mp4'):
        find_videos(folder / 'empty')
    (folder / 'classes.txt').write_text('zumba\n')
    with pytest.raises(InputError, match="'arm wrestling' is not among the 1 classes of .*classes"):
        write_list([str(folder / 'train')], str(folder / 'train.txt'), decode=False)
    with pytest.raises(UsageError, match='--workers takes a number'):
        write_list([str(folder / 'val')], str(folder / 'val.txt'), workers=0)
    with pytest.raises(InputError, match='none of the 1 videos is left .1 in an excluded set'):
        write_list([str(folder / 'val')], str(folder / 'val.txt'), exclude=[str(folder / 'val')])
    assert not (folder / 'train.txt').exists()
    assert not (folder / 'val.txt').exists()


def test_why_a_video_cannot_be_read(folder):
    assert why_unreadable(str(folder / 'val' / 'zumba' / f'{IDS[2]}_000099_000109.mp4')) is None
    for content in (b'', b'no video at all', bytes(4000)):
        (folder / 'bad.mp4').write_bytes(content)
        assert why_unreadable(str(folder / 'bad.mp4'))
    whole = put_index_first(write_video(folder / 'web.mp4', 20, (96, 80)))
    assert why_unreadable(str(whole)) is None
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    assert 'av_read_frame failed' in why_unreadable(str(whole))
    assert 'No such file' in why_unreadable(str(folder / 'gone.mp4'))


def _die(path):
    os._exit(11)


def test_a_decoder_that_dies_is_told(folder, monkeypatch):
    monkeypatch.setattr(lists, 'why_unreadable', _die)
    with pytest.raises(
        InputError, match=r'brought its process down at one of .*val/zumba.*--no-de'
    ):
        write_list([str(folder / 'val')], str(folder / 'val.txt'))
    assert not (folder / 'val.txt').exists()


def test_tool(folder):
    command = [sys.executable, ROOT / 'tools' / 'list_videos.py', folder / 'train']
    command += ['--out', folder / 'train.txt', '--exclude', folder / 'val', '--workers', '2']
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert '3 videos of 2 classes' in done.stdout
    assert len((folder / 'train.txt').read_text().splitlines()) == 3
    command[2] = folder / 'none'
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder)
    assert done.returncode == 1
    assert 'list_videos.py: folder of class folders not found' in done.stderr
    assert 'Traceback' not in done.stderr
