"""Classification head of EVA on clips: mean of the patch tokens, normalisation, linear layer."""

import os

import numpy as np
import torch
from mmaction.models.heads import BaseHead
from mmaction.registry import MODELS
from torch import Tensor, nn

from eva_mm.errors import InputError, MissingFileError


def read_class_rows(path: str | os.PathLike) -> list[int]:
    """Rows of another head, one for each class of this one, in this one's order.

    Args:
        path: the published form, ``.npy``, or a text file with a number per line.

    Raises:
        MissingFileError: no such file.
        InputError: it does not hold a list of different, non-negative whole numbers.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise MissingFileError(f'class mapping not found: {path}')
    try:
        if path.endswith('.npy'):
            rows = np.load(path, allow_pickle=False).reshape(-1)
        else:
            rows = np.loadtxt(path, dtype=np.float64, ndmin=1).reshape(-1)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f'class mapping {path}: expected a number per class: {error}') from error
    whole = np.asarray(rows, dtype=np.float64)
    wrong = (whole < 0) | (whole != np.floor(whole))
    if wrong.any():
        raise InputError(f'class mapping {path}: {whole[wrong][0]} is the number of no row')
    if len(np.unique(whole)) != len(whole):
        raise InputError(f'class mapping {path}: a row is named twice')
    return [int(row) for row in whole]


@MODELS.register_module()
class EVAVideoHead(BaseHead):
    """Linear classifier on the normalised mean of all patch tokens, in the published names.

    Label smoothing and soft labels are those of mmaction2's :class:`BaseHead`, which are the
    published ones: smoothing of mixed labels is linear.

    Args:
        num_classes: K.
        in_channels: width D.
        class_rows: rows of a wider head that a checkpoint may bring, one for each class, or the
            file with them (:func:`read_class_rows`): Kinetics-722's, for the data sets in it.
        norm_eps: of the LayerNorm.
        init_std, init_scale: of the initial weights, a normal cut at 2, times a factor.
        **kwargs: of ``BaseHead``: ``label_smooth_eps``, ``average_clips`` ...
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        class_rows: str | list[int] | None = None,
        norm_eps: float = 1e-6,
        init_std: float = 0.02,
        init_scale: float = 0.001,
        **kwargs,
    ):
        super().__init__(num_classes, in_channels, **kwargs)
        self.class_rows = class_rows
        self.fc_norm = nn.LayerNorm(in_channels, eps=norm_eps)
        self.fc_cls = nn.Linear(in_channels, num_classes)
        nn.init.trunc_normal_(self.fc_cls.weight, std=init_std, a=-2, b=2)
        nn.init.zeros_(self.fc_cls.bias)
        with torch.no_grad():
            self.fc_cls.weight.mul_(init_scale)

    def pool(self, x: Tensor) -> Tensor:
        """Map of patch tokens (B, D, t, h, w) -> pooled feature (B, D)."""
        return self.fc_norm(x.flatten(2).mean(dim=2))

    def forward(self, x: Tensor, **kwargs) -> Tensor:
        """Map of patch tokens (B, D, t, h, w) -> logits (B, K), fp32.

        NumPy, by which mmaction2 counts hits, knows no bf16.
        """
        return self.fc_cls(self.pool(x)).float()

    def _load_from_state_dict(self, state_dict, prefix, *args):
        """Take the rows of this head's classes out of a wider head."""
        for name in ('fc_cls.weight', 'fc_cls.bias'):
            loaded = state_dict.get(prefix + name)
            if self.class_rows and loaded is not None and len(loaded) != self.num_classes:
                state_dict[prefix + name] = loaded[self._checked_rows(len(loaded))]
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _checked_rows(self, available: int) -> list[int]:
        where, rows = 'class_rows', self.class_rows
        if isinstance(rows, (str, os.PathLike)):
            where, rows = f'class mapping {rows}', read_class_rows(rows)
        if len(rows) != self.num_classes or max(rows) >= available:
            raise InputError(
                f'{where}: {len(rows)} rows up to {max(rows, default=-1)}, expected '
                f'{self.num_classes} below {available}, the rows of the checkpoint'
            )
        return list(rows)
