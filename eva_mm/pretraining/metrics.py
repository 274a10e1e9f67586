"""Loss of pretraining over a validation set, beside that of a student that has learned nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.dist import get_dist_info
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from eva_mm.errors import InputError


@METRICS.register_module()
class MIMLossMetric(BaseMetric):
    """Mean loss over images, exact however many processes there are.

    Gives ``loss``, the mean over images of their mean loss, and what predicting the same for every
    patch would give at best:

    - regression: ``mean_feature_loss``, minus the length of the mean of the unit features at the
      scored patches, which is the loss of predicting its direction;
    - classification: ``constant_loss``, the entropy in nats of how often each code occurs; and
      ``accuracy``.

    Where images are scored at different numbers of patches, those two are over patches. Processes
    tell each other sums, not images; they take every n-th image, as mmengine's samplers deal them.
    """

    default_prefix = 'pretrain'

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._begin()

    def _begin(self) -> None:
        self._sums: dict[str, Any] = {}
        self._num_seen = 0
        # Not yet in the sums: samplers repeat images so that each process has as many, which is
        # one at most and the last.
        self._last: dict[str, Any] | None = None

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Add up what the model's target says of each image.

        Raises:
            InputError: an image has no patch that is scored.
        """
        for sample in data_samples:
            if sample['num_patches'] == 0:
                raise InputError('an image of the batch has no hidden patch: nothing to score')
            if self._last is not None:
                _add(self._sums, _terms(self._last))
            self._last = sample
            self._num_seen += 1

    def evaluate(self, size: int) -> dict[str, float]:
        """Metrics of the ``size`` images of the data set, each counted once."""
        rank, world_size = get_dist_info()
        if self._last is not None and (self._num_seen - 1) * world_size + rank < size:
            _add(self._sums, _terms(self._last))
        self.results = [self._sums]
        self._begin()
        return super().evaluate(world_size)

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        """Metrics of the sums of all processes."""
        sums: dict[str, Any] = {}
        for part in results:
            _add(sums, part)
        images, patches = sums['images'], sums['patches']
        metrics = dict(loss=float(sums['loss'] / images))
        if 'features' in sums:
            metrics['mean_feature_loss'] = -float(np.linalg.norm(sums['features'] / patches))
        if 'codes' in sums:
            shares = sums['codes'][sums['codes'] > 0] / patches
            metrics['constant_loss'] = float(-(shares * np.log(shares)).sum())
            metrics['accuracy'] = float(sums['accuracy'] / images)
        return metrics


def _terms(sample: dict[str, Any]) -> dict[str, Any]:
    """What an image adds to the sums, in fp64."""
    terms = dict(images=1, patches=sample['num_patches'], loss=sample['loss'])
    if 'feature_sum' in sample:
        terms['features'] = sample['feature_sum'].double().numpy()
    if 'codes' in sample:
        terms['codes'] = np.bincount(sample['codes'].numpy(), minlength=sample['num_codes'])
        terms['accuracy'] = sample['accuracy']
    return terms


def _add(sums: dict[str, Any], terms: dict[str, Any]) -> None:
    for key, value in terms.items():
        sums[key] = sums.get(key, 0) + value
