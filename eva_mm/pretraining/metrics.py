"""Loss of pretraining over a validation set, beside that of a student that has learned nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from torch import Tensor


@METRICS.register_module()
class MIMLossMetric(BaseMetric):
    """Mean loss over images, exact however many processes there are.

    Gives ``loss``, the mean over images of their mean loss, and what predicting the same for every
    patch would give at best:

    - regression: ``mean_feature_loss``, minus the length of the mean of the unit features at the
      scored patches, which is the loss of predicting its direction;
    - classification: ``constant_loss``, the entropy in nats of how often each code occurs; and
      ``accuracy``.

    Where images are scored at different numbers of patches, those two are over patches.
    """

    default_prefix = 'pretrain'

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Keep what the model's target says of each image."""
        for sample in data_samples:
            # Arrays are smaller than tensors when processes tell each other.
            self.results.append(
                {k: v.numpy() if isinstance(v, Tensor) else v for k, v in sample.items()}
            )

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        """Means over all images, each counted once."""
        metrics = dict(loss=float(np.mean([r['loss'] for r in results])))
        patches = sum(r['num_patches'] for r in results)
        if 'feature_sum' in results[0]:
            mean = np.sum([r['feature_sum'].astype(np.float64) for r in results], axis=0) / patches
            metrics['mean_feature_loss'] = -float(np.linalg.norm(mean))
        if 'codes' in results[0]:
            counts = np.bincount(
                np.concatenate([r['codes'] for r in results]), minlength=results[0]['num_codes']
            )
            shares = counts[counts > 0] / patches
            metrics['constant_loss'] = float(-(shares * np.log(shares)).sum())
            metrics['accuracy'] = float(np.mean([r['accuracy'] for r in results]))
        return metrics
