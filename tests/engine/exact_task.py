"""The toy task with random augmentations and dropout, for runs that must repeat exactly.

Each iteration's loss, the mean over all processes, is written with every bit to
`losses.txt` of the work dir.
"""

import os
import random
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import torch
from mmengine.dist import all_reduce, is_main_process
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS, TRANSFORMS
from torch import nn

from eva_mm.engine.exact_data import PositionSeeded
from tests.toy_task import ToyClassifier, ToyImages, config_text

SEED = 5


@DATASETS.register_module()
class ExactToyImages(PositionSeeded, ToyImages):
    pass


@TRANSFORMS.register_module()
class ToyNoise:
    """Adds noise from python's, numpy's and torch's generators, after `delay` seconds."""

    def __init__(self, delay=0.0):
        self.delay = delay

    def __call__(self, results):
        time.sleep(self.delay)
        image = results['inputs']
        noise = torch.from_numpy(np.random.normal(size=image.shape)) + torch.randn(image.shape)
        results['inputs'] = (random.uniform(0.5, 1.5) * image + noise).float()
        return results


@MODELS.register_module()
class ToyDropoutClassifier(ToyClassifier):
    def __init__(self, drop=0.3, **kwargs):
        super().__init__(**kwargs)
        self.drop = nn.Dropout(drop)

    def extract_feat(self, inputs):
        return self.drop(super().extract_feat(inputs))


@HOOKS.register_module()
class LossRecorder(Hook):
    """One line per iteration: its number, the loss, and the rate it was reached with."""

    priority = 'VERY_HIGH'

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.lr = runner.optim_wrapper.optimizer.param_groups[-1]['lr']

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        loss = outputs['loss'].detach().double()
        all_reduce(loss, 'mean')
        if is_main_process():
            with open(Path(runner.work_dir, 'losses.txt'), 'a') as file:
                file.write(f'{runner.iter + 1} {float(loss).hex()} {float(self.lr).hex()}\n')


@METRICS.register_module()
class ToyCount(BaseMetric):
    """What was evaluated: how many samples, how many of them light, and in which order."""

    default_prefix = 'toy'

    def process(self, data_batch, data_samples):
        self.results += data_samples

    def compute_metrics(self, results):
        labels = [int(r['label']) for r in results]
        order = sum(place * label for place, label in enumerate(labels))
        return dict(count=len(labels), light=sum(labels), order=order)


def exact_config_text(root, delay=0.0):
    """A config of 30 iterations that validates every 7 and saves every 5 (an epoch is 4)."""
    text = config_text(root).replace('tests.toy_task', 'tests.engine.exact_task')
    text = text.replace("'ToyClassifier'", "'ToyDropoutClassifier'")
    text = text.replace("'ToyImages'", "'ExactToyImages'")
    text = text.replace("'InfiniteSampler'", "'ExactInfiniteSampler'")
    text = text.replace('val_interval=30', 'val_interval=7').replace('lr=0.1', 'lr=0.01')
    hooks = dict(
        checkpoint=dict(type='SafeCheckpointHook', by_epoch=False, interval=5, max_keep_ckpts=3),
        iteration_seed=dict(type='IterationSeedHook'),
    )
    return (
        f'{text}\n'
        f'dataset["pipeline"].insert(1, dict(type="ToyNoise", delay={delay}))\n'
        f'default_hooks = {hooks!r}\n'
        f'custom_hooks = [dict(type="LossRecorder")]\n'
    )


def read_losses(work_dir):
    """Lines of `losses.txt` in the order written: (iteration, loss, rate)."""
    path = Path(work_dir, 'losses.txt')
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [line.split() for line in lines]
    return [(int(i), float.fromhex(loss), float.fromhex(lr)) for i, loss, lr in rows]


def kill_all(process):
    """SIGKILL a process and everything below it, torchrun's workers included."""
    tree = [process, *psutil.Process(process.pid).children(recursive=True)]
    for one in tree:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()


def environment(root):
    """Of a tool's process on CPUs."""
    return {
        **os.environ,
        'PYTHONPATH': str(root),
        'OMP_NUM_THREADS': '1',
        'CUDA_VISIBLE_DEVICES': '-1',
    }
