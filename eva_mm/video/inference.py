"""Video classifiers in `tools/infer.py`: the best classes of a whole video."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Sequence
from typing import Any

import cv2
import decord
import numpy as np
import torch
from mmaction.registry import MODELS
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.device import get_device
from mmengine.registry import init_default_scope
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from eva_mm.engine.strict_loading import load_whole_checkpoint
from eva_mm.errors import InputError, UsageError

from .classes import class_names_of
from .datasets import load_video

TOP = 5
_COLUMNS = 4  # of the sheet of frames
_SHOWN = 8  # frames at most
_SHEET = 960  # pixels wide, at most
_MIN_SHEET = 480
_GAP = 2  # pixels of white behind a frame
_LETTER = 18  # height in pixels

Prediction = list[tuple[int, float]]


class VideoPredictor:
    """A classifier of clips; see :class:`eva_mm.engine.inference.Predictor`.

    Videos go through the config's test pipeline; clips that it would draw at random are spread
    evenly, so that a video has one answer.

    Args:
        cfg: with ``model`` and ``test_dataloader``.
        checkpoint: path, URL or ``eva://`` name. Class names are those of its
            ``meta.dataset_meta``, else of the config's test data (``classes``, or ``classes.txt``
            beside the list), else of Kinetics-400 where there are 400.
        device: as torch names it; a GPU if there is one by default.
        classes: names, also several in one text, separated by commas; these are reported only.
        score_thr: leave out probabilities at or below it.

    Attributes:
        header: columns of :meth:`row`.

    Raises:
        UsageError: ``score_thr`` out of range, or a class that the model does not know.
        InputError: the config's ``classes`` are looked at, and are not as many as the outputs.
        CheckpointMismatchError: the checkpoint does not fit.
    """

    whole_videos = True

    def __init__(
        self,
        cfg: Config,
        checkpoint: str,
        device: str | None = None,
        classes: Sequence[str] | None = None,
        score_thr: float = 0.0,
    ) -> None:
        if not 0 <= score_thr < 1:
            raise UsageError(f'--score-thr takes a probability from 0 to below 1, not {score_thr}')
        init_default_scope(cfg.get('default_scope', 'mmaction'))
        self.score_thr = score_thr
        self.pipeline = Compose(even_clips(cfg.test_dataloader.dataset.pipeline))
        self.model = MODELS.build(cfg.model)
        loaded = load_whole_checkpoint(self.model, checkpoint)
        self.model.to(device or get_device()).eval()
        self.names = output_names(loaded, cfg, self.model.cls_head.num_classes)
        self.categories = [dict(id=i, name=name) for i, name in enumerate(self.names)]
        wanted = None if classes is None else _split(classes)
        self._reported = _labels_of(wanted or self.names, self.names)
        # What a user asks for is told whole.
        self.top = len(self._reported) if wanted else min(TOP, len(self.names))
        self.header = [
            column for n in range(1, self.top + 1) for column in (f'class_{n}', f'probability_{n}')
        ]

    def load_video(self, path: str) -> dict[str, Any]:
        """A video through the test pipeline.

        Raises:
            UnreadableFileError: it cannot be decoded.
        """
        info = dict(filename=path, label=-1, start_index=0, modality='RGB')
        return load_video(self.pipeline, info)

    @torch.no_grad()
    def predict(self, samples: Sequence[dict[str, Any]]) -> list[Prediction]:
        """Per video the best classes and their probabilities, the best first."""
        # mmaction2 takes a few views at a time of one video only.
        limited = (getattr(self.model, 'test_cfg', None) or {}).get('max_testing_views')
        size = 1 if limited else len(samples)
        parts = [list(samples[start : start + size]) for start in range(0, len(samples), size)]
        found = [result for part in parts for result in self.model.test_step(pseudo_collate(part))]
        return [self._best(result.pred_score) for result in found]

    def _best(self, probabilities: Tensor) -> Prediction:
        """Probabilities are those among all classes, also where some are reported only."""
        probabilities = probabilities.float().cpu()
        labels = probabilities.argsort(descending=True, stable=True).tolist()
        labels = [label for label in labels if label in self._reported][: self.top]
        best = [(label, float(probabilities[label])) for label in labels]
        return [(label, score) for label, score in best if score > self.score_thr]

    def records(self, prediction: Prediction, image_id: int) -> list[dict]:
        """One per class: ``image_id``, ``category_id`` (from 0) and ``score``, a probability."""
        return [dict(image_id=image_id, category_id=i, score=score) for i, score in prediction]

    def row(self, prediction: Prediction) -> list[str]:
        """Cells of a table under :attr:`header`; empty where fewer classes are reported."""
        cells = [text for i, score in prediction for text in (self.names[i], f'{score:.6g}')]
        return cells + [''] * (len(self.header) - len(cells))

    def describe(self, prediction: Prediction) -> list[str]:
        """Lines to print."""
        return [f'{score:<12.5g}{self.names[i]}' for i, score in prediction]

    def draw(self, path: str, prediction: Prediction) -> np.ndarray:
        """The best classes and their probabilities in percent, below a sheet of frames, BGR."""
        try:
            sheet = draw_sheet(read_frames(path, _SHOWN))
        except (decord.DECORDError, RuntimeError, OSError, AssertionError):
            # The clips could be decoded, so there is an answer; frames beside them are broken.
            sheet = np.full((_LETTER, _MIN_SHEET, 3), 255, np.uint8)
        lines = [f'{100 * score:5.1f} %  {self.names[i]}' for i, score in prediction] or ['-']
        height = (len(lines) * 4 // 3 + 1) * _LETTER + _LETTER // 2
        area = Image.new('RGB', (sheet.shape[1], height), (255, 255, 255))
        text, place = '\n'.join(lines), (_LETTER // 2, _LETTER // 2)
        font = ImageFont.load_default(_LETTER)
        ImageDraw.Draw(area).multiline_text(place, text, font=font, fill=(0, 0, 0))
        return np.concatenate((sheet, np.asarray(area)[..., ::-1]))


def even_clips(pipeline: Sequence[dict]) -> list[dict]:
    """A test pipeline whose clips are spread evenly instead of drawn."""
    return [
        dict(transform, clips='even') if transform['type'] == 'SampleSegments' else transform
        for transform in pipeline
    ]


def output_names(checkpoint: dict, cfg: Config, number: int) -> list[str]:
    """Names of a classifier's outputs; see :class:`VideoPredictor`."""
    meta = (checkpoint.get('meta') or {}).get('dataset_meta') or {}
    for names in (lambda: meta.get('classes'), lambda: _names_of_data(cfg, number), _kinetics_400):
        if (found := names()) and len(found) == number:
            return list(found)
    return [f'class {index}' for index in range(number)]


def _names_of_data(cfg: Config, number: int) -> tuple[str, ...]:
    dataset = cfg.test_dataloader.dataset
    file = os.path.join(dataset.get('data_root') or '', dataset.get('ann_file') or '')
    classes = dataset.get('classes')
    names = class_names_of(classes, file)
    if classes and len(names) != number:
        source = f'={classes}' if isinstance(classes, str) else ''
        raise InputError(
            f'test_dataloader.dataset.classes{source} names {len(names)} classes, but the model '
            f'has {number} outputs'
        )
    return names


def _kinetics_400() -> list[str]:
    """Classes of Kinetics-400 in their sorted order, as torchvision has them."""
    from torchvision.models.video import Swin3D_T_Weights

    return sorted(Swin3D_T_Weights.KINETICS400_V1.meta['categories'])


def read_frames(path: str, number: int) -> list[np.ndarray]:
    """Frames of a video, spread evenly over it: (H, W, 3) uint8, BGR."""
    with open(path, 'rb') as file:
        reader = decord.VideoReader(file, num_threads=1)
        number = min(number, len(reader))
        indices = [int((i + 0.5) * len(reader) / number) for i in range(number)]
        return [frame[..., ::-1] for frame in reader.get_batch(indices).asnumpy()]


def draw_sheet(frames: Sequence[np.ndarray]) -> np.ndarray:
    """Frames side by side in rows of four: (H, W, 3) uint8."""
    columns = min(_COLUMNS, len(frames))
    height, width = frames[0].shape[:2]
    scale = max(min(1.0, _SHEET / (columns * width)), _MIN_SHEET / (columns * width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    tiles = [cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames]
    for tile in tiles:
        tile[-_GAP:] = tile[:, -_GAP:] = 255
    blank = np.full_like(tiles[0], 255)
    tiles += [blank] * (math.ceil(len(tiles) / columns) * columns - len(tiles))
    rows = [np.concatenate(tiles[i : i + columns], axis=1) for i in range(0, len(tiles), columns)]
    return np.concatenate(rows)


def _split(classes: Sequence[str]) -> list[str]:
    names = [name.strip() for text in classes for name in text.split(',')]
    names = list(dict.fromkeys(name for name in names if name))
    if not names:
        raise UsageError('--classes names no class; expected names, separated by commas')
    return names


def _labels_of(wanted: Sequence[str], names: Sequence[str]) -> frozenset[int]:
    for name in wanted:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
            hint = f'near: {", ".join(near)}' if near else f'it has {"; ".join(names[:5])} ...'
            raise UsageError(f'--classes: the model knows no {name!r}; {hint}')
    return frozenset(index for index, name in enumerate(names) if name in wanted)
