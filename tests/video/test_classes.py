"""Union of class lists, places in it, and the tool that writes them."""

import subprocess
import sys

import pytest

from eva_mm.errors import InputError, MissingFileError
from eva_mm.video.classes import read_classes, rows_in, union_of, write_rows
from eva_mm.video.head import read_class_rows

from ..helpers import ROOT


def test_union_and_places():
    small, large = ['washing', 'abseiling', 'zumba'], ['yoga', 'abseiling', 'dancing']
    union = union_of([small, large])
    assert union == ['abseiling', 'dancing', 'washing', 'yoga', 'zumba']
    # Row j is of class j in the set's own order, that of its labels.
    assert rows_in(union, small) == [2, 0, 4]
    assert rows_in(union, sorted(large)) == [0, 1, 3]
    with pytest.raises(InputError, match="1 classes are not among the 5 .*'knitting'"):
        rows_in(union, ['yoga', 'knitting'])


def test_folders_are_sorted_and_lists_keep_their_order(tmp_path):
    for name in ('b c', 'a', '.hidden'):
        (tmp_path / 'videos' / name).mkdir(parents=True)
    (tmp_path / 'videos' / 'readme').touch()
    (tmp_path / 'list.txt').write_text('b\u2028c\n\na\n', encoding='utf-8')
    assert read_classes(tmp_path / 'videos') == ['a', 'b c']
    assert read_classes(tmp_path / 'list.txt') == ['b\u2028c', 'a']
    with pytest.raises(MissingFileError, match='class list not found'):
        read_classes(tmp_path / 'none')
    (tmp_path / 'list.txt').write_text('a\na\n')
    with pytest.raises(InputError, match="'a' stands there twice"):
        read_classes(tmp_path / 'list.txt')
    (tmp_path / 'list.txt').write_text('\n')
    with pytest.raises(InputError, match='no class in it'):
        read_classes(tmp_path / 'list.txt')
    (tmp_path / 'list.txt').write_bytes(b'caf\xe9\n')
    with pytest.raises(InputError, match='list.txt is not text in UTF-8'):
        read_classes(tmp_path / 'list.txt')


@pytest.mark.parametrize('name', ['rows.npy', 'rows.txt'])
def test_what_is_written_is_what_the_head_reads(tmp_path, name):
    write_rows([4, 0, 11], tmp_path / 'new' / name)
    assert read_class_rows(tmp_path / 'new' / name) == [4, 0, 11]
    assert [path.name for path in (tmp_path / 'new').iterdir()] == [name]


def test_tool(tmp_path):
    for name, classes in (('one', 'b\nd\n'), ('two', 'a\nb\nc\n')):
        (tmp_path / name).write_text(classes)
    command = [sys.executable, ROOT / 'tools' / 'map_classes.py', tmp_path / 'one']
    command += ['--union', tmp_path / 'one', tmp_path / 'two', '--out', tmp_path / 'rows.npy']
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert '2 rows of 4' in result.stdout
    assert read_class_rows(tmp_path / 'rows.npy') == [1, 3]
    command[2] = tmp_path / 'none'
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert result.returncode == 1
    assert 'class list not found' in result.stderr
    assert 'Traceback' not in result.stderr
