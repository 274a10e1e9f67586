"""What the hook finds at the start of a run."""

from types import SimpleNamespace

import pytest
from mmengine.logging import MessageHub, MMLogger

from eva_mm.engine.exact_data import ExactInfiniteSampler, PositionSeeded
from eva_mm.engine.hooks import IterationSeedHook, iteration_seed


class Data(PositionSeeded, list):
    pass


@pytest.fixture
def runner(monkeypatch):
    texts = []
    logger = MMLogger('iteration_seed_test')
    monkeypatch.setattr(logger, 'log', lambda level, text: texts.append(text))
    monkeypatch.setattr(logger, 'warning', texts.append)
    data = Data(range(8))
    loader = SimpleNamespace(batch_size=4, dataset=data, sampler=ExactInfiniteSampler(data, seed=5))
    return SimpleNamespace(
        iter=0,
        seed=5,
        logger=logger,
        texts=texts,
        train_dataloader=loader,
        message_hub=MessageHub('iteration_seed_test'),
    )


def test_an_exact_run_is_not_warned_of(runner):
    IterationSeedHook().before_train(runner)
    assert runner.texts == []


def test_another_total_batch_on_resume_is_told(runner):
    runner.message_hub.update_info('total_batch', 8)
    runner.iter = 3
    IterationSeedHook().before_train(runner)
    (text,) = runner.texts
    assert 'resumed with 4 samples per iteration, trained with 8 so far' in text
    assert runner.message_hub.get_info('total_batch') == 4


@pytest.mark.parametrize(
    ('other', 'message'),
    [
        ((9, 5), r'different iterations: \[0, 9\].*all machines see'),
        ((0, 6), r'different seeds: \[5, 6\]; leave randomness.diff_rank_seed out'),
    ],
)
def test_processes_that_start_apart_stop(runner, monkeypatch, other, message):
    monkeypatch.setattr(iteration_seed, 'all_gather_object', lambda start: [start, other])
    with pytest.raises(RuntimeError, match=message):
        IterationSeedHook().before_train(runner)
