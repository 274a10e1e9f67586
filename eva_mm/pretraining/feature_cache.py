"""Teacher features on disk, for runs whose views repeat.

A frozen teacher gives the same features for the same view of an image. Where the data set has
``num_views``, epochs repeat after so many, and from then on the teacher need not run:
``custom_hooks = [dict(type='FeatureCacheHook', folder='/local_disk/features')]``. Features are kept
in fp16, N * D * 2 bytes per view: 196 KiB for 14 x 14 patches of 512, 384 KiB for EVA-g's.
"""

from __future__ import annotations

import json
import os
import shutil
import weakref
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS, TRANSFORMS
from mmengine.runner import Runner
from torch import Tensor

from eva_mm.engine.saving import write_whole
from eva_mm.errors import InputError, UnreadableFileError

from .masking import Masking
from .teacher import CLIPTeacher

_FEATURES, _CHECKSUMS, _META = 'features.f16', 'checksums.u32', 'meta.json'


class FeatureCache:
    """One row of features (N, D) per slot, each behind a checksum.

    Rows are written in any order by any process of a machine. A row counts only with its checksum,
    which is written after it, so that what a kill or a loss of power cut short is computed again.
    The folder is for the disk of one machine: processes elsewhere take folders of their own.

    Args:
        folder: made if it is not there.
        num_slots: number of rows.
        shape: (N, D).
        identity: what the features depend on, as plain values. A folder made for anything else
            is refused.

    Raises:
        InputError: the folder is of another teacher, data set or size; the message names file, what
            was found and what was expected. Or the disk is too small.
        UnreadableFileError: its description cannot be read.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        num_slots: int,
        shape: tuple[int, int],
        identity: Mapping[str, Any],
    ):
        self.folder = os.fspath(folder)
        self.shape = tuple(shape)
        self.num_slots = num_slots
        self.row_bytes = 2 * shape[0] * shape[1]
        self._writes = True
        meta = dict(num_slots=num_slots, num_patches=shape[0], feature_dim=shape[1], **identity)
        os.makedirs(self.folder, exist_ok=True)
        with FileLock(self._path('lock')):
            if os.path.exists(self._path(_META)):
                self._compare(meta)
            else:
                self._create(meta)
        self._features = os.open(self._path(_FEATURES), os.O_RDWR)
        self._checksums = os.open(self._path(_CHECKSUMS), os.O_RDWR)
        # Also when the cache is dropped, as by a training that fails.
        self._closing = weakref.finalize(self, _close, self._features, self._checksums)

    def close(self) -> None:
        """Close the files; the cache cannot be used any more."""
        self._closing()

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def _create(self, meta: Mapping[str, Any]) -> None:
        needed, free = self.num_slots * self.row_bytes, shutil.disk_usage(self.folder).free
        if needed > free:
            raise InputError(
                f'feature cache {self.folder} needs {needed / 2**30:.1f} GiB for '
                f'{self.num_slots:,} views, {free / 2**30:.1f} GiB are free'
            )
        for name, size in ((_FEATURES, needed), (_CHECKSUMS, 4 * self.num_slots)):
            with open(self._path(name), 'wb') as file:
                file.truncate(size)  # takes no room until it is written to
        text = json.dumps(meta, indent=2).encode()
        write_whole(self._path(_META), lambda file: file.write(text))

    def _compare(self, expected: Mapping[str, Any]) -> None:
        path = self._path(_META)
        try:
            with open(path, encoding='utf-8') as file:
                found = json.load(file)
        except (OSError, ValueError) as error:
            raise UnreadableFileError(f'cannot read {path}: {error}') from error
        expected = json.loads(json.dumps(expected))  # tuples as lists
        for key in sorted({*found, *expected}):
            if found.get(key) != expected.get(key):
                raise InputError(
                    f'{path} is of other features: {key} is {found.get(key)!r}, expected '
                    f'{expected.get(key)!r}. Take another folder, or delete this one'
                )

    def read(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of some slots.

        Args:
            slots: (B,) int64; -1 has no row.

        Returns:
            (B, N, D) float16, and which of them are there, (B,) bool; the others are zero.

        Raises:
            InputError: a slot beyond the cache.
        """
        if len(slots) and not -1 <= slots.min() <= slots.max() < self.num_slots:
            raise InputError(
                f'cache_slot {slots.min()} ... {slots.max()} is beyond the {self.num_slots} slots '
                f'of {self.folder}'
            )
        rows = np.zeros((len(slots), *self.shape), np.float16)
        known = np.zeros(len(slots), bool)
        for index, slot in enumerate(slots.tolist()):
            if slot == -1:
                continue
            checksum = int.from_bytes(os.pread(self._checksums, 4, 4 * slot), 'little')
            if checksum == 0:
                continue
            data = os.pread(self._features, self.row_bytes, slot * self.row_bytes)
            if len(data) == self.row_bytes and _checksum(data) == checksum:
                rows[index] = np.frombuffer(data, np.float16).reshape(self.shape)
                known[index] = True
        return rows, known

    def write(self, slots: np.ndarray, rows: np.ndarray) -> None:
        """Keep rows (B, N, D) float16; a full disk is told of once, and training goes on."""
        if not self._writes:
            return
        try:
            for slot, row in zip(slots.tolist(), rows):
                data = np.ascontiguousarray(row).tobytes()
                _write_all(self._features, data, slot * self.row_bytes)
                _write_all(self._checksums, _checksum(data).to_bytes(4, 'little'), 4 * slot)
        except OSError as error:
            self._writes = False
            text = f'feature cache {self.folder} takes no more: {error}; the teacher goes on'
            print_log(text, 'current', level=30)

    def fetch(self, cache_slot: Tensor, image: Tensor, teacher: CLIPTeacher) -> Tensor:
        """Features of a batch, from disk where they are known, else from the teacher.

        Args:
            cache_slot: (B,) int64; -1 is neither looked for nor kept.
            image: (B, 3, H, W) for the teacher, on its device.
            teacher: asked for what is missing, which is then kept.

        Returns:
            (B, N, D) float32 on the device of the images. Rounded to fp16 even when fresh, so that
            a run does not depend on what was kept before; features beyond the range of fp16 are
            neither rounded nor kept.
        """
        slots = cache_slot.cpu().numpy()
        rows, known = self.read(slots)
        features = torch.from_numpy(rows).to(image.device).float()
        if known.all():
            return features
        missing = torch.from_numpy(np.flatnonzero(~known)).to(image.device)
        fresh = teacher(image[missing]).float()
        rounded = fresh.half()
        fits = rounded.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
        features[missing] = torch.where(fits, rounded.float(), fresh)
        kept = fits.flatten().cpu().numpy() & (slots[~known] >= 0)
        self.write(slots[~known][kept], rounded.cpu().numpy()[kept])
        return features


def _checksum(data: bytes) -> int:
    """CRC-32, never 0, which is what an empty slot has."""
    return zlib.crc32(data) or 1


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


@HOOKS.register_module()
class FeatureCacheHook(Hook):
    """Lets a student of :mod:`eva_mm.pretraining` keep its teacher's features in training.

    Needs a data set with ``num_views``, whose samples carry ``cache_slot``. What is kept depends on
    teacher, its precision, images, their normalisation, transforms (but for masks) and seed: set
    ``randomness.seed``, so that another run can use it.

    Args:
        folder: on a disk of this machine; see :class:`FeatureCache`.

    Raises:
        InputError: in training: the data set's views do not repeat, the model has no teacher, or
            the folder is of other features.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def before_train(self, runner: Runner) -> None:
        """Open the cache."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        teacher = getattr(model, 'teacher', None)
        dataset = runner.train_dataloader.dataset
        num_slots = getattr(dataset, 'num_slots', None)
        if teacher is None or num_slots is None:
            what = (
                'a model with a teacher'
                if teacher is None
                else 'train_dataloader.dataset.num_views'
            )
            raise InputError(f'FeatureCacheHook needs {what}')
        pipeline = runner.cfg.train_dataloader.dataset.pipeline
        identity = dict(
            teacher=teacher.digest(),
            precision=_precision(runner),
            images=dataset.digest(),
            normalisation=_normalisation(model.data_preprocessor),
            num_views=dataset.num_views,
            transforms=str([_plain(step) for step in pipeline if not _is_mask(step)]),
            seed=getattr(runner.train_dataloader.sampler, 'seed', None),
        )
        shape = (teacher.grid[0] * teacher.grid[1], teacher.feature_dim)
        model.feature_cache = FeatureCache(self.folder, num_slots, shape, identity)

    def after_train(self, runner: Runner) -> None:
        """Close it."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        model.feature_cache.close()
        model.feature_cache = None


def _precision(runner: Runner) -> str:
    """Type that the optimizer wrapper's autocast computes in."""
    device = next(runner.model.parameters()).device.type
    with runner.optim_wrapper.optim_context(runner.model):
        if torch.is_autocast_enabled(device):
            return str(torch.get_autocast_dtype(device)).removeprefix('torch.')
    return 'float32'


def _normalisation(preprocessor: Any) -> dict[str, Any]:
    """Kind of the preprocessor, and its mean and standard deviation."""
    numbers = {name: getattr(preprocessor, name, torch.empty(0)) for name in ('mean', 'std')}
    values = {name: value.flatten().tolist() for name, value in numbers.items()}
    return dict(type=type(preprocessor).__name__, **values)


def _is_mask(transform: Mapping) -> bool:
    """Whether the teacher does not see what a transform does."""
    kind = transform['type']
    kind = TRANSFORMS.get(kind) if isinstance(kind, str) else kind
    return isinstance(kind, type) and issubclass(kind, Masking)


def _plain(transform: Mapping) -> list[tuple[str, Any]]:
    return sorted((key, str(value)) for key, value in transform.items())
