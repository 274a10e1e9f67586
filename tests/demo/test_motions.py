"""The generated clips, checked from their files, and what one frame tells of the class."""

import re

import cv2
import numpy as np
import pytest

from eva_mm.demo import generate_kinetics
from eva_mm.demo.motions import MOTIONS, draw_motion
from tests.demo.test_generate import run_tool, tree_digest


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return generate_kinetics(tmp_path_factory.mktemp('kinetics') / 'set', 4, 2)


def read_frames(path):
    video = cv2.VideoCapture(str(path))
    frames = []
    while (frame := video.read())[0]:
        frames.append(frame[1])
    return np.stack(frames)


def object_of(frame):
    """Pixels of the object, which is brighter than any background."""
    return frame.max(axis=2) > 150


def centre(mask):
    """Place of the object on the ring of columns and of rows, in [0, 1)."""
    places = []
    for axis in (0, 1):
        weights = mask.sum(axis=axis)
        angles = 2 * np.pi * np.arange(len(weights)) / len(weights)
        places.append(np.angle((weights * np.exp(1j * angles)).sum()) / (2 * np.pi) % 1)
    return np.array(places)


@pytest.mark.parametrize(('split', 'count'), [('train', 4), ('val', 2)])
def test_layout_of_kinetics(root, split, count):
    names = (root / 'classes.txt').read_text().splitlines()
    assert names == sorted(MOTIONS)
    assert {folder.name for folder in (root / split).iterdir()} == set(names)
    lines = (root / f'{split}.txt').read_text().splitlines()
    assert len(lines) == count * len(names)
    for line in lines:
        path, _, label = line.rpartition(' ')
        assert re.fullmatch(r'[\w-]{11}_000000_000002\.mp4', path.split('/')[2], re.ASCII)
        assert path.split('/')[:2] == [split, names[int(label)]]
        assert read_frames(root / path).shape == (32, 64, 64, 3)
    assert len({line.split('/')[2] for line in lines}) == len(lines)


@pytest.mark.parametrize('name', MOTIONS)
def test_the_class_is_the_motion(root, name):
    for path in sorted((root / 'train' / name).iterdir()):
        masks = [object_of(frame) for frame in read_frames(path)]
        steps = np.diff([centre(mask) for mask in masks], axis=0)
        steps = (steps + 0.5) % 1 - 0.5  # the shorter way round
        areas = np.log([mask.sum() for mask in masks])
        expected = np.array([MOTIONS[name].x, MOTIONS[name].y])
        moved = np.median(steps, axis=0) * 31
        if name in ('growing', 'shrinking'):
            assert np.abs(moved).max() < 0.1
            assert np.sign(np.median(np.diff(areas))) == MOTIONS[name].size
        else:
            assert (np.sign(np.round(moved, 1)) == expected).all()
            assert np.abs(moved).max() > 0.25
            assert np.ptp(areas) < 0.3


def test_no_frame_tells_the_class():
    """Place and size have the same distribution in a frame of every class, whichever frame."""
    found = {}
    for name, motion in MOTIONS.items():
        for frame in (0, 20):
            masks = [
                object_of(draw_motion(motion, (32, 32), np.random.default_rng((k, 5)))[frame])
                for k in range(300)
            ]
            places = np.array([centre(mask) for mask in masks])
            areas = np.array([mask.mean() for mask in masks])
            found[name, frame] = np.stack((*places.T, areas), axis=1)
    every = np.concatenate(list(found.values()))
    for sample in found.values():
        for ours, all_of_them in zip(sample.T, every.T):
            # Kolmogorov and Smirnov's distance; of 300 it exceeds 0.12 once in some thousand cases.
            grid = np.sort(all_of_them)
            steps = np.searchsorted(np.sort(ours), grid, side='right') / len(ours)
            assert np.abs(steps - np.arange(1, len(grid) + 1) / len(grid)).max() < 0.12


def test_motions_differ_in_nothing_else():
    """With the same random numbers, every class begins with the same picture."""
    first = [
        draw_motion(motion, (64, 64), np.random.default_rng(7))[0] for motion in MOTIONS.values()
    ]
    assert all(np.array_equal(first[0], other) for other in first)


def test_same_arguments_same_bytes_and_more_clips_begin_alike(root, tmp_path):
    assert tree_digest(generate_kinetics(tmp_path / 'again', 4, 2)) == tree_digest(root)
    more, old = tree_digest(generate_kinetics(tmp_path / 'more', 5, 2)), tree_digest(root)
    assert {n: d for n, d in old.items() if n.endswith('.mp4')}.items() <= more.items()
    other = tree_digest(generate_kinetics(tmp_path / 'other', 4, 2, seed=1))
    assert set(other.values()).isdisjoint(d for n, d in old.items() if n.endswith('.mp4'))


def test_a_damaged_set_is_made_again(tmp_path):
    root = generate_kinetics(tmp_path / 'set', 1, 1)
    whole = tree_digest(root)
    next(root.glob('train/growing/*.mp4')).unlink()
    generate_kinetics(root, 1, 1)
    assert tree_digest(root) == whole


def test_foreign_files_are_never_touched(tmp_path):
    (tmp_path / 'train.txt').write_text('a real list 0\n')
    with pytest.raises(FileExistsError, match='did not write .such as train.txt'):
        generate_kinetics(tmp_path, 1, 1)
    assert (tmp_path / 'train.txt').read_text() == 'a real list 0\n'


def test_impossible_requests_name_the_argument(tmp_path):
    with pytest.raises(ValueError, match='val_per_class is 0, expected at least 1'):
        generate_kinetics(tmp_path / 'set', 1, 0)
    with pytest.raises(ValueError, match='expected even sides'):
        generate_kinetics(tmp_path / 'set', 1, 1, (64, 65))
    assert not (tmp_path / 'set').exists()


def test_command_line(tmp_path):
    out = tmp_path / 'tool'
    counts = ('--train-per-class', '2', '--val-per-class', '1')
    done = run_tool(
        'tools/make_demo.py', 'kinetics', '--out', str(out), *counts, '--size', '64', '96',
        '--seed', '3',
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert tree_digest(out) == tree_digest(generate_kinetics(tmp_path / 'call', 2, 1, (64, 96), 3))
