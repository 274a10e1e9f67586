"""The count of replaced images reaches the log."""

import errno
import os
from types import SimpleNamespace

import pytest
from mmengine.logging import MMLogger

from eva_mm.engine.hooks import unreadable_images
from eva_mm.engine.hooks.unreadable_images import UnreadableImagesHook
from eva_mm.engine.unreadable import BrokenImageError, ReplacesUnreadable
from eva_mm.errors import UnreadableFileError


@pytest.fixture
def told(monkeypatch):
    texts = []
    monkeypatch.setattr(unreadable_images, 'print_log', lambda text, *_: texts.append(text))
    return texts


def make_runner(dataset, iteration=0):
    sampler = SimpleNamespace(batch_size=4)  # DataLoader tells none of its own beside one
    loader = SimpleNamespace(dataset=dataset, batch_size=None, batch_sampler=sampler)
    return SimpleNamespace(iter=iteration, train_dataloader=loader)


def test_growth_and_sum_are_told(told):
    dataset = SimpleNamespace(skip_unreadable=True, num_replaced=0)
    wrapped = SimpleNamespace(dataset=dataset)  # as RepeatDataset and the like hold theirs
    hook = UnreadableImagesHook(interval=10)
    hook.before_train(make_runner(wrapped, 20))
    for iteration in range(20, 60):
        dataset.num_replaced += iteration in (23, 25, 45)
        hook.after_train_iter(make_runner(wrapped, iteration), iteration)
    assert [text.rpartition(': ')[2] for text in told] == [
        '2 (5.00% of 40 samples)',
        '3 (2.50% of 120 samples)',
    ]
    hook.after_train(make_runner(wrapped, 60))
    assert told[-1] == 'unreadable images replaced by others: 3 (1.88% of 160 samples)'


def test_other_data_sets_are_not_mentioned(told):
    hook = UnreadableImagesHook(interval=1)
    for dataset in (object(), SimpleNamespace(skip_unreadable=False, num_replaced=0)):
        hook.after_train_iter(make_runner(dataset), 0)
        hook.after_train(make_runner(dataset))
    assert told == []


class Failing(ReplacesUnreadable):
    """Its first image raises, as `open_rgb` does, from a cause."""

    def __init__(self, cause, path='0.png'):
        super().__init__(skip_unreadable=True)
        self.cause, self.path = cause, path

    def load(self, index):
        if index == 0:
            raise BrokenImageError(f'cannot read image {self.path}: {self.cause}') from self.cause
        return index

    def first(self, candidates=(0, 1)):
        return self.load_first_readable(candidates, self.load, 'the next image', 'here')


@pytest.mark.parametrize(
    'cause', [MemoryError(), OSError(errno.EMFILE, 'Too many'), OSError(errno.ENFILE, 'Too many')]
)
def test_what_is_no_fault_of_the_image_stops(cause):
    dataset = Failing(cause)
    with pytest.raises(BrokenImageError, match='cannot read image 0.png'):
        dataset.first()
    assert dataset.num_replaced == 0
    others = Failing(OSError(errno.EIO, 'Input/output error'))
    assert (others.first(), others.num_replaced) == (1, 1)


def test_names_that_are_no_utf8_reach_the_log_file(tmp_path):
    file = tmp_path / 'run.log'
    logger = MMLogger.get_instance(f'names_{tmp_path.name}', log_file=str(file))
    dataset = Failing(ValueError('no picture'), os.fsdecode(b'\xff.png'))
    assert dataset.first() == 1
    for handler in logger.handlers:
        handler.flush()
    assert (
        r'cannot read image \udcff.png: no picture; the next image replaces it' in file.read_text()
    )
    with pytest.raises(UnreadableFileError, match=r'\\udcff.png'):
        dataset.first([0])


def test_the_shipped_runtime_has_it():
    pytest.importorskip('mmdet')
    import eva_mm

    hooks = eva_mm.get_config('lvis/eva_cascade').default_hooks
    assert hooks.unreadable_images.type == 'UnreadableImagesHook'
