"""Moving average of the weights as the published fine-tunings keep it."""

from typing import Any

import torch
from mmengine.hooks import EMAHook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS, LOOPS
from mmengine.runner import Runner, ValLoop
from torch import Tensor

from eva_mm.errors import InputError

_PREFIX = 'module.'  # of names under `ema_state_dict`, where mmengine wraps a whole model


@HOOKS.register_module()
class EVAEMAHook(EMAHook):
    """Averages ``decay * average + (1 - decay) * weights`` after each update.

    The average starts from the weights before the first update, a new head's near-zero ones
    included, without correction of the bias that this leaves (github.com/baaivision/EVA,
    EVA-01/eva/run_class_finetuning.py; timm's first ``ModelEma``). mmengine's ``EMAHook`` starts
    from those after it, averages in every pass of an accumulation, and exchanges weights in tests
    too, where a checkpoint's ``state_dict`` is the average already.

    Checkpoints hold the average under ``state_dict`` and the weights under training under
    ``ema_state_dict``, as mmengine's do. Validation sees the average; see
    :class:`RawAndAveragedValLoop` for both. Frozen parameters and buffers are not averaged.

    Args:
        decay: of the average, per update.

    Raises:
        InputError: a decay outside (0, 1).
    """

    def __init__(self, decay: float = 0.9999) -> None:
        if not 0 < decay < 1:
            raise InputError(f'decay of the moving average should lie in (0, 1), got {decay}')
        super().__init__()
        self.decay = decay
        # Empty outside of training, where nothing is exchanged.
        self.average: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}
        self._resumed: dict[str, Tensor] = {}

    def before_run(self, runner: Runner) -> None:
        """Nothing: the weights to start from are not loaded yet."""

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Put the weights under training where the model is loaded from, if a run is resumed."""
        if not runner._resume:
            return
        if 'ema_state_dict' not in checkpoint:
            text = 'the checkpoint holds no moving average: it starts anew from the weights'
            print_log(text, 'current', level=30)
            return
        state, raw = checkpoint['state_dict'], checkpoint['ema_state_dict']
        for key in raw:
            name = key.removeprefix(_PREFIX)
            if name in state:
                self._resumed[name], state[name] = state[name], raw[key]

    def before_train(self, runner: Runner) -> None:
        """Copy the weights; a resumed run goes on with its average."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self._weights = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
        self.average = {name: value.clone() for name, value in self._weights.items()}
        for name, value in self.average.items():
            if name in self._resumed:
                value.copy_(self._resumed[name])
        self._resumed = {}

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Average, if this iteration ended in an update: also a last, incomplete accumulation."""
        done, count = runner.iter + 1, runner.optim_wrapper._accumulative_counts
        if done % count == 0 or done == runner.max_iters:
            averages, weights = list(self.average.values()), list(self._weights.values())
            torch._foreach_lerp_(averages, weights, 1 - self.decay)

    def swap(self) -> None:
        """Exchange weights and average in the model."""
        self._swap_ema_parameters()

    def _swap_ema_parameters(self) -> None:
        for name, value in self.average.items():
            weight = self._weights[name]
            kept = weight.clone()
            weight.copy_(value)
            value.copy_(kept)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Put in both, as said above."""
        state, raw = checkpoint['state_dict'], {}
        for name, value in self.average.items():
            raw[_PREFIX + name], state[name] = state[name], value.cpu()
        if raw:
            checkpoint['ema_state_dict'] = raw


@LOOPS.register_module()
class RawAndAveragedValLoop(ValLoop):
    """Validates the weights under training and their moving average, as the published logs do.

    Metrics of the former get the prefix ``raw/``. Without a moving average both are the same.
    """

    def run(self) -> dict:
        """Launch validation; returns all metrics."""
        self.runner.call_hook('before_val')
        self.runner.call_hook('before_val_epoch')  # the average comes in
        metrics = self._evaluate()
        raw = self._evaluate_raw() or metrics
        metrics = {**metrics, **{f'raw/{name}': value for name, value in raw.items()}}
        self.runner.call_hook('after_val_epoch', metrics=metrics)
        self.runner.call_hook('after_val')
        return metrics

    def _evaluate_raw(self) -> dict | None:
        """Metrics of the weights under training; None where nothing is averaged."""
        hook = next((h for h in self.runner.hooks if isinstance(h, EVAEMAHook)), None)
        if hook is None or not hook.average:
            return None
        hook.swap()
        metrics = self._evaluate()
        hook.swap()
        return metrics

    def _evaluate(self) -> dict:
        self.runner.model.eval()
        for index, batch in enumerate(self.dataloader):
            self.run_iter(index, batch)
        return self.evaluator.evaluate(len(self.dataloader.dataset))
