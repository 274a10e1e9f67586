"""Accuracy and loss against scikit-learn; several processes equal one."""

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from eva_mm.classification import ClassificationMetric
from eva_mm.errors import InputError

from ..helpers import free_port


def samples(number, classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(number, classes, generator=generator)
    labels = torch.randint(0, classes, (number,), generator=generator)
    return [dict(logits=row, label=label) for row, label in zip(logits, labels)]


def evaluate(data, batch=7, **kwargs):
    metric = ClassificationMetric(**kwargs)
    for start in range(0, len(data), batch):
        metric.process(None, data[start : start + batch])
    return metric.evaluate(len(data))


def test_equals_scikit_learn():
    sklearn = pytest.importorskip('sklearn.metrics')
    data = samples(503, 11)
    scores = torch.stack([s['logits'] for s in data]).double().softmax(1).numpy()
    labels = np.array([int(s['label']) for s in data])
    values = evaluate(data, topk=(1, 3, 5))
    every = np.arange(11)
    for k in (1, 3, 5):
        expected = 100 * sklearn.top_k_accuracy_score(labels, scores, k=k, labels=every)
        assert values[f'accuracy/top{k}'] == pytest.approx(expected)
    expected = sklearn.log_loss(labels, scores, labels=every)
    assert values['accuracy/loss'] == pytest.approx(expected, rel=1e-5)


def test_by_hand():
    logits = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0]])
    data = [dict(logits=logits[0], label=0), dict(logits=logits[1], label=0)]
    values = evaluate(data, topk=(1, 2, 3, 5))
    assert values['accuracy/top1'] == 50
    assert values['accuracy/top2'] == 50
    assert values['accuracy/top3'] == 100
    assert 'accuracy/top5' not in values  # of three classes
    expected = -logits.log_softmax(1)[:, 0].mean()
    assert values['accuracy/loss'] == pytest.approx(float(expected))


def test_equal_scores_are_no_hit_for_every_class():
    """Untrained heads of zeros must not look perfect."""
    data = [dict(logits=torch.zeros(4), label=label) for label in range(4)]
    assert evaluate(data, topk=(1,))['accuracy/top1'] == 25


def test_labels_have_to_fit():
    with pytest.raises(InputError, match='labels from 0 to 7 in the data set.*3 outputs'):
        evaluate([dict(logits=torch.zeros(3), label=label) for label in (0, 7)])
    with pytest.raises(InputError, match='image a.jpg has no label'):
        evaluate([dict(logits=torch.zeros(3), img_path='a.jpg')])


def _evaluate_part(rank, port, number, queue):
    from mmengine.dataset import DefaultSampler

    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        'gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2
    )
    data = samples(number, 6)
    mine = [data[i] for i in DefaultSampler(data, shuffle=False)]
    metric = ClassificationMetric(topk=(1, 2))
    for start in range(0, len(mine), 4):
        metric.process(None, mine[start : start + 4])
    values = metric.evaluate(number)
    if rank == 0:
        queue.put(values)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize('number', [1, 9])
def test_two_processes_with_an_odd_number_equal_one(number):
    queue = mp.get_context('spawn').SimpleQueue()
    mp.spawn(_evaluate_part, (free_port(), number, queue), nprocs=2)
    assert queue.get() == pytest.approx(evaluate(samples(number, 6), topk=(1, 2)))


def test_what_is_not_a_number_is_never_right():
    nan = float('nan')
    data = [dict(logits=torch.full((3,), nan), label=label) for label in range(3)]
    values = evaluate(data, topk=(1, 3))
    assert values['accuracy/top1'] == values['accuracy/top3'] == 0
    data = [dict(logits=torch.tensor([nan, 1.0, 2.0]), label=label) for label in range(3)]
    values = evaluate(data, topk=(1, 2, 3))
    assert [values[f'accuracy/top{k}'] for k in (1, 2, 3)] == pytest.approx(
        [100 / 3, 200 / 3, 200 / 3]
    )


@pytest.mark.parametrize('topk', [1, (0,), (1, 2.5), (-1, 5), ('1',)])
def test_bad_topk(topk):
    with pytest.raises(InputError, match='topk should be whole numbers from 1'):
        ClassificationMetric(topk=topk)
