"""What the student predicts of the teacher's features, and how well.

Shape letters: B batch, N patches, D the teacher's width, P outputs per patch, K codes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from eva_mm.engine.checkpoint import safe_load
from eva_mm.errors import InputError, MissingFileError

from .teacher import CLIPTeacher, OutsideWeights


def _mean_where(values: Tensor, where: Tensor) -> Tensor:
    """Mean of (B, N) over the places of a bool mask; fixed shapes, so the GPU is not waited for.

    Without any place it is NaN, which training and metrics tell of; 0 would pass for a loss.
    """
    return (values * where).sum() / where.sum()


@MODELS.register_module()
class CosineRegression(nn.Module):
    """Minus the cosine similarity of prediction and feature, in fp32 (the paper, section 2.1)."""

    def output_dim(self, feature_dim: int) -> int:
        """Outputs per patch that the student needs."""
        return feature_dim

    def load(self, teacher: CLIPTeacher) -> None:
        """Nothing to read."""

    def outside_weights(self) -> Iterator[OutsideWeights]:
        """None."""
        yield from ()

    @staticmethod
    def similarity(prediction: Tensor, features: Tensor) -> Tensor:
        """(B, N, D), (B, N, D) -> cosine per patch (B, N), float32."""
        return F.cosine_similarity(prediction.float(), features.float(), dim=-1)

    def loss(self, prediction: Tensor, features: Tensor, where: Tensor) -> dict[str, Tensor]:
        """Loss over the patches of ``where`` (B, N) bool, all of the batch alike."""
        return dict(loss=-_mean_where(self.similarity(prediction, features), where))

    def evaluate(self, prediction: Tensor, features: Tensor, where: Tensor) -> list[dict[str, Any]]:
        """Per image what :class:`~eva_mm.pretraining.metrics.MIMLossMetric` sums up.

        Returns:
            Per image ``loss`` (its mean over ``where``), ``num_patches``, and ``feature_sum`` (D,):
            the sum of the unit features at ``where``.
        """
        similarity = self.similarity(prediction, features)
        units = F.normalize(features.float(), dim=-1)
        return [
            dict(
                loss=-float(_mean_where(similarity[i], where[i])),
                num_patches=int(where[i].sum()),
                feature_sum=(units[i] * where[i, :, None]).sum(0).cpu(),
            )
            for i in range(len(where))
        ]


@MODELS.register_module()
class CodebookClassification(nn.Module):
    """Cross-entropy to the nearest of K directions: the pilot study's tokenised features.

    The codes come from spherical k-means over the teacher's features
    (:mod:`eva_mm.pretraining.codebook`, ``tools/build_codebook.py``). They are no part of the
    student's checkpoints.

    Args:
        codebook: file written by ``tools/build_codebook.py``; None leaves :attr:`codes` to be set.
        num_codes: K.
        feature_dim: D.
    """

    def __init__(self, codebook: str | None, num_codes: int = 8192, feature_dim: int = 512):
        super().__init__()
        self.codebook = codebook
        self.register_buffer('codes', torch.zeros(num_codes, feature_dim), persistent=False)
        self.is_loaded = codebook is None

    def output_dim(self, feature_dim: int) -> int:
        """K.

        Raises:
            InputError: the teacher has another width than the codes.
        """
        num_codes, own = self.codes.shape
        if feature_dim != own:
            raise InputError(
                f'model.target.feature_dim is {own}, but the teacher has features of {feature_dim}'
            )
        return num_codes

    def load(self, teacher: CLIPTeacher) -> None:
        """Read the codes, once.

        Args:
            teacher: whose features the codes have to be of.

        Raises:
            InputError: no file, no codebook, or one of another teacher or size.
        """
        if self.is_loaded:
            return
        codes, meta = read_codebook(self.codebook)
        _require_same_teacher(self.codebook, meta, teacher)
        if codes.shape != self.codes.shape:
            found, expected = (' x '.join(map(str, t.shape)) for t in (codes, self.codes))
            raise InputError(
                f'codebook {self.codebook} has codes of {found}, expected {expected} '
                f'(model.target.num_codes x feature_dim)'
            )
        self.codes.copy_(codes)
        self.is_loaded = True

    def outside_weights(self) -> Iterator[OutsideWeights]:
        """The codebook's file."""
        if self.codebook is not None:
            state = 'found' if os.path.exists(self.codebook) else 'missing'
            yield OutsideWeights(f'codebook {self.codebook}', state, self.codes.nbytes)

    def assign(self, features: Tensor) -> Tensor:
        """(..., D) -> number of the nearest code (...), int64; lengths do not matter."""
        with torch.autocast(features.device.type, enabled=False):
            return (features.float() @ F.normalize(self.codes, dim=-1).t()).argmax(-1)

    def _cross_entropy(self, prediction: Tensor, codes: Tensor) -> Tensor:
        """(B, N, K), (B, N) -> (B, N), float32."""
        return F.cross_entropy(prediction.float().transpose(1, 2), codes, reduction='none')

    def loss(self, prediction: Tensor, features: Tensor, where: Tensor) -> dict[str, Tensor]:
        """Loss over ``where`` (B, N) bool, and the share of codes that were predicted."""
        codes = self.assign(features)
        hits = (prediction.argmax(-1) == codes).float()
        return dict(
            loss=_mean_where(self._cross_entropy(prediction, codes), where),
            accuracy=_mean_where(hits, where).detach(),
        )

    def evaluate(self, prediction: Tensor, features: Tensor, where: Tensor) -> list[dict[str, Any]]:
        """Per image ``loss``, ``num_patches``, ``accuracy`` and the ``codes`` at ``where``."""
        codes = self.assign(features)
        losses = self._cross_entropy(prediction, codes)
        hits = (prediction.argmax(-1) == codes).float()
        return [
            dict(
                loss=float(_mean_where(losses[i], where[i])),
                num_patches=int(where[i].sum()),
                accuracy=float(_mean_where(hits[i], where[i])),
                codes=codes[i][where[i]].int().cpu(),
                num_codes=len(self.codes),
            )
            for i in range(len(where))
        ]


def _require_same_teacher(file: str, meta: dict[str, Any], teacher: CLIPTeacher) -> None:
    """Refuse codes of another teacher, whose directions would mean nothing.

    Raises:
        InputError: the codebook is of another, or does not tell of which.
    """
    if meta.get('teacher_digest') == teacher.digest():
        return
    if 'teacher_digest' in meta:
        found = f'{meta.get("teacher")} ({meta.get("weights")}, {meta["teacher_digest"][:12]})'
    else:
        found = 'a teacher that it does not tell the digest of'
    raise InputError(
        f'codebook {file} is of the features of {found}, expected {teacher.name} '
        f'({teacher.weights}, {teacher.digest()[:12]}): tools/build_codebook.py CONFIG makes it'
    )


def read_codebook(file: str) -> tuple[Tensor, dict[str, Any]]:
    """What ``tools/build_codebook.py`` wrote: codes (K, D) float32, and what they were made of.

    Raises:
        MissingFileError: no such file.
        InputError: it holds no codes.
    """
    try:
        content = safe_load(file, 'cpu')
    except FileNotFoundError as error:
        raise MissingFileError(
            f'codebook {file} does not exist: tools/build_codebook.py CONFIG --out {file} makes it'
        ) from error
    codes = content.get('codes')
    if not isinstance(codes, Tensor) or codes.ndim != 2:
        raise InputError(f'{file} is no codebook: it holds {list(content)[:4]}, expected codes')
    return codes.float(), dict(content.get('meta') or {})
