"""Codes for tokenised features: spherical k-means over what a teacher says of a config's images.

Shape letters: M feature vectors, D their width, K codes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import Tensor

from eva_mm.engine.saving import save_checkpoint
from eva_mm.errors import InputError

from .teacher import CLIPTeacher

# Similarities held at a time, in numbers: 256 MiB.
_CHUNK = 2**26


class Codebook(NamedTuple):
    """Result of :func:`spherical_kmeans`.

    Attributes:
        codes: (K, D) float32, of unit length.
        counts: (K,) int64, features nearest to each.
        similarity: mean cosine of a feature and its code.
    """

    codes: Tensor
    counts: Tensor
    similarity: float


def spherical_kmeans(
    features: Tensor, num_codes: int, iterations: int = 20, seed: int = 0
) -> Codebook:
    """Cluster directions: each code is that of the mean of the unit features nearest to it.

    Starts from features drawn at random. A code that no feature is nearest to moves to one of
    those that fit their own code worst.

    Args:
        features: (M, D), of any length but 0; best on a GPU.
        num_codes: K.
        iterations: of Lloyd's algorithm.
        seed: of the start.

    Raises:
        InputError: fewer features than codes.
    """
    if len(features) < num_codes:
        raise InputError(f'{len(features)} features are too few for {num_codes} codes')
    units = F.normalize(features.float(), dim=-1)
    start = torch.randperm(len(units), generator=torch.Generator().manual_seed(seed))[:num_codes]
    codes = units[start.to(units.device)]
    for _ in range(iterations):
        nearest, similarity = _nearest(units, codes)
        sums = torch.zeros_like(codes).index_add_(0, nearest, units)
        empty = torch.bincount(nearest, minlength=num_codes) == 0
        sums[empty] = units[similarity.topk(int(empty.sum()), largest=False).indices]
        codes = F.normalize(sums, dim=-1)
    nearest, similarity = _nearest(units, codes)
    counts = torch.bincount(nearest, minlength=num_codes)
    return Codebook(codes, counts, float(similarity.mean()))


def _nearest(units: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Number of each feature's nearest code, and their cosine."""
    best = [(chunk @ codes.t()).max(dim=1) for chunk in units.split(max(1, _CHUNK // len(codes)))]
    return torch.cat([b.indices for b in best]), torch.cat([b.values for b in best])


def patch_features(
    cfg: Config, teacher: CLIPTeacher, num_images: int, patches_per_image: int
) -> Iterator[Tensor]:
    """Teacher features of some patches of a config's training images, batch by batch.

    Args:
        cfg: of pretraining; its training data loader and preprocessor are used.
        teacher: with its weights.
        num_images: in all.
        patches_per_image: drawn at random from each.

    Yields:
        (B * patches_per_image, D) float32, on the device of the teacher.
    """
    torch.manual_seed(0)
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    device = next(teacher.parameters()).device
    preprocessor = MODELS.build(cfg.model.data_preprocessor).to(device)
    seen = 0
    for batch in loader:
        batch = preprocessor(batch)
        image = batch.get('teacher_image', batch['image'])[: num_images - seen]
        features = teacher(image)
        picked = torch.rand(features.shape[:2], device=features.device).argsort(dim=1)
        picked = picked[:, :patches_per_image, None].expand(-1, -1, features.shape[-1])
        yield features.gather(1, picked).flatten(0, 1)
        seen += len(image)
        if seen >= num_images:
            return


def build_codebook(
    cfg: Config,
    out: str | None = None,
    num_codes: int | None = None,
    num_images: int = 100_000,
    patches_per_image: int = 20,
    iterations: int = 20,
    device: torch.device | str = 'cpu',
) -> tuple[str, Codebook]:
    """Make the codebook that a config's ``CodebookClassification`` reads.

    Args:
        cfg: of pretraining.
        out: file to write; by default ``model.target.codebook``.
        num_codes: K; by default ``model.target.num_codes``.
        num_images: training images that are looked at.
        patches_per_image: of each of them.
        iterations: of k-means.
        device: to compute on.

    Returns:
        The file and what it holds.

    Raises:
        InputError: neither the config nor the caller names a file or a number of codes, or what
            the data and the teacher raise.
    """
    target = cfg.model.get('target') or {}
    out, num_codes = out or target.get('codebook'), num_codes or target.get('num_codes')
    if not out or not num_codes:
        raise InputError(
            f'{cfg.filename} names no codebook (model.target.codebook and num_codes): '
            f'--out FILE and --num-codes N are needed'
        )
    if os.path.isdir(out):
        raise InputError(f'--out {out} is a folder, expected a file name')
    teacher = MODELS.build(cfg.model.teacher)
    teacher.load(device)
    parts = patch_features(cfg, teacher, num_images, patches_per_image)
    features = torch.cat([part.half() for part in parts])  # half the memory, for what is a start
    print_log(f'{len(features):,} features of {features.shape[1]}: {num_codes} codes', 'current')
    book = spherical_kmeans(features, num_codes, iterations)
    content: dict[str, Any] = dict(
        codes=book.codes.cpu(),
        counts=book.counts.cpu(),
        meta=dict(
            teacher=teacher.name,
            weights=str(teacher.weights),
            teacher_digest=teacher.digest(),
            num_features=len(features),
            similarity=book.similarity,
        ),
    )
    save_checkpoint(content, out)
    return out, book
