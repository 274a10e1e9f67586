"""The count of replaced images reaches the log."""

from types import SimpleNamespace

import pytest

from eva_mm.engine.hooks import unreadable_images
from eva_mm.engine.hooks.unreadable_images import UnreadableImagesHook


@pytest.fixture
def told(monkeypatch):
    texts = []
    monkeypatch.setattr(unreadable_images, 'print_log', lambda text, *_: texts.append(text))
    return texts


def make_runner(dataset, iteration=0):
    return SimpleNamespace(iter=iteration, train_dataloader=SimpleNamespace(dataset=dataset))


def test_growth_and_sum_are_told(told):
    dataset = SimpleNamespace(skip_unreadable=True, num_replaced=0)
    wrapped = SimpleNamespace(dataset=dataset)  # as RepeatDataset and the like hold theirs
    hook = UnreadableImagesHook(interval=10)
    for iteration in range(40):
        dataset.num_replaced += iteration in (3, 5, 25)
        hook.after_train_iter(make_runner(wrapped, iteration), iteration)
    assert [text.rpartition(' ')[2] for text in told] == ['2', '3']
    hook.after_train(make_runner(wrapped))
    assert told[-1] == 'unreadable images replaced by others: 3'


def test_other_data_sets_are_not_mentioned(told):
    hook = UnreadableImagesHook(interval=1)
    for dataset in (object(), SimpleNamespace(skip_unreadable=False, num_replaced=0)):
        hook.after_train_iter(make_runner(dataset), 0)
        hook.after_train(make_runner(dataset))
    assert told == []


def test_the_shipped_runtime_has_it():
    pytest.importorskip('mmdet')
    import eva_mm

    hooks = eva_mm.get_config('lvis/eva_cascade').default_hooks
    assert hooks.unreadable_images.type == 'UnreadableImagesHook'
