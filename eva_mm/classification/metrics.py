"""Accuracy and loss of a classifier over a data set."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from eva_mm.errors import InputError


@METRICS.register_module()
class ClassificationMetric(BaseMetric):
    """Top-k accuracy in percent and mean cross-entropy, each image counted once.

    Samplers of several processes pad the data set to a common length; what they padded is dropped
    before the mean is taken, so that the number of processes does not matter. (The published
    evaluation counts padded images twice: EVA-01/eva/engine_for_finetuning.py.)

    Args:
        topk: the k, from 1; those above the number of classes are left out.
        collect_device, prefix: see :class:`mmengine.evaluator.BaseMetric`.

    Raises:
        InputError: ``topk`` is no sequence of whole numbers from 1.
    """

    default_prefix = 'accuracy'

    def __init__(
        self,
        topk: Sequence[int] = (1, 5),
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device, prefix)
        if not isinstance(topk, Sequence) or not all(type(k) is int and k > 0 for k in topk):
            raise InputError(f'topk should be whole numbers from 1, as (1, 5), got {topk!r}')
        self.topk = tuple(topk)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keep rank of the true class and loss of each image.

        Args:
            data_batch: unused.
            data_samples: per image ``logits`` (K,) and ``label``.

        Raises:
            InputError: an image has no label, or one that the model has no output for.
        """
        logits = torch.stack([sample['logits'] for sample in data_samples]).float()
        labels = torch.stack([torch.as_tensor(_label(sample)) for sample in data_samples])
        labels = labels.to(logits.device)
        classes = logits.shape[1]
        if int(labels.min()) < 0 or int(labels.max()) >= classes:
            raise InputError(
                f'labels from {int(labels.min())} to {int(labels.max())} in the data set, but the '
                f'model has {classes} outputs, 0 to {classes - 1}'
            )
        ranks = class_ranks(logits).gather(1, labels[:, None])[:, 0]
        losses = F.cross_entropy(logits, labels, reduction='none')
        rows = torch.stack((ranks.double(), losses.double()), dim=1).cpu().tolist()
        self.results += [(int(rank), loss, classes) for rank, loss in rows]

    def compute_metrics(self, results: list[tuple[int, float, int]]) -> dict[str, float]:
        """Rank, loss and number of classes per image -> means."""
        ranks, losses, classes = map(torch.tensor, zip(*results))
        kept = [k for k in self.topk if k <= int(classes[0])]
        values = {f'top{k}': 100 * float((ranks < k).double().mean()) for k in kept}
        values['loss'] = float(losses.double().mean())
        return values


def class_ranks(logits: torch.Tensor) -> torch.Tensor:
    """Rank of each class, 0 for the best; of equal ones the first is the better.

    Args:
        logits: (N, K).

    Returns:
        int64 (N, K). A class whose logit is not a number has rank K: it is never right.
    """
    lowest = logits.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    order = lowest.argsort(dim=1, descending=True, stable=True)
    return order.argsort(dim=1).masked_fill(logits.isnan(), logits.shape[1])


def _label(sample: dict) -> Any:
    if 'label' not in sample:
        raise InputError(f'image {sample.get("img_path", "?")} has no label to be evaluated by')
    return sample['label']
