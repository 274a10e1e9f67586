"""Random numbers of the model as a function of (seed, iteration, rank)."""

import logging

import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from eva_mm.engine.exact_data import PositionSeeded, seed_generators


def seed_iteration(seed: int, iteration: int, rank: int) -> None:
    """Seed python, numpy and torch, CUDA included, for one training iteration of one process.

    Args:
        seed: of the run.
        iteration: 0-based; with gradient accumulation, each forward pass counts.
        rank: of the process.
    """
    # Of another length than a sample's (seed, position), so that no key is ever used by both.
    seed_generators(seed, iteration, rank)
    if torch.cuda.is_available():
        torch.cuda.manual_seed(torch.initial_seed())


@HOOKS.register_module()
class IterationSeedHook(Hook):
    """Seeds the generators before each training iteration from (seed, iteration, rank).

    Stochastic depth, dropout and the sampling of proposals then need no saved state: neither a
    validation in between, nor the birth of workers, nor a resume shifts them, and every process
    has numbers of its own. At the start it warns of what else would make a resumed run differ.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Make sure that all processes start alike; warn of what makes a resumed run differ.

        Raises:
            RuntimeError: processes begin at different iterations or with different seeds.
        """
        iterations, seeds = zip(*all_gather_object((runner.iter, runner.seed)))
        if len(set(iterations)) > 1:
            raise RuntimeError(
                f'processes start at different iterations: {list(iterations)}; a resumed run needs '
                f'a work dir that all machines see'
            )
        if len(set(seeds)) > 1:
            raise RuntimeError(
                f'processes have different seeds: {list(seeds)}; leave randomness.diff_rank_seed '
                f'out, their random numbers differ without it'
            )
        for problem in _inexact(runner):
            runner.logger.log(logging.WARNING, f'a resumed run will differ: {problem}')
        self._compare_batch(runner)

    @staticmethod
    def _compare_batch(runner: Runner) -> None:
        """Samples per iteration decide which of them a resumed run has seen."""
        batch = getattr(runner.train_dataloader, 'batch_size', None)
        if batch is None:
            return
        hub, now = runner.message_hub, batch * get_world_size()
        before = hub.get_info('total_batch', now)
        if runner.iter and before != now:
            runner.logger.warning(
                f'resumed with {now} samples per iteration, trained with {before} so far: samples '
                f'repeat or are left out, and rate and schedule are those of another batch'
            )
        hub.update_info('total_batch', now)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        """Seed; the batch is loaded already, by generators of its own."""
        seed_iteration(runner.seed, runner.iter, get_rank())


def _inexact(runner: Runner) -> list[str]:
    loader = runner.train_dataloader
    problems = []
    sampler = loader.sampler
    if not hasattr(sampler, 'skip'):
        problems.append(
            f'sampler {type(sampler).__name__} cannot skip what was seen, ExactInfiniteSampler can'
        )
    if getattr(sampler, 'seed', runner.seed) != runner.seed:
        problems.append(
            f'the sampler was built with seed {sampler.seed}, the run has {runner.seed} '
            f'(resume by --resume, and leave randomness.diff_rank_seed out)'
        )
    if not isinstance(loader.dataset, PositionSeeded):
        problems.append(
            f'augmentations of {type(loader.dataset).__name__} depend on its workers; '
            f'data sets with eva_mm.engine.exact_data.PositionSeeded do not'
        )
    return problems
