"""Segmentors in `tools/infer.py`: maps, areas of the classes, drawings with a legend."""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.device import get_device
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from PIL import Image, ImageDraw, ImageFont

from eva_mm.engine.strict_loading import load_whole_checkpoint
from eva_mm.errors import UsageError

from .datasets import distinct_colours
from .hooks import last_head

MAX_DRAWN_SIDE, MIN_DRAWN_SIDE = 2048, 640  # pixels of the longer side
OPACITY = 0.55
# Beyond so many numbers, 1 GB, maps are enlarged in strips.
MAX_SCORES = 2**28
_LETTERS = 26  # lines that a legend holds
_MIN_LETTER = 11  # height in pixels
_BORDER = (255, 255, 255)
_PANEL, _TEXT = (28, 28, 28), (235, 235, 235)
_DESCRIBED = 8  # classes that are printed


class ClassMap(NamedTuple):
    """Prediction of an image.

    Attributes:
        labels: (H, W) uint8 or uint16, the class of each pixel; the largest number of the type
            where the class is none of those to be reported.
        areas: index of a class -> its pixels, the largest first.
    """

    labels: np.ndarray
    areas: dict[int, int]


class SegmentationPredictor:
    """A segmentor of mmseg, EVA's or another; see :class:`eva_mm.engine.inference.Predictor`.

    Args:
        cfg: with ``model`` and ``test_dataloader``.
        checkpoint: path, URL or ``eva://`` name. Class names and colours are those of its
            ``meta.dataset_meta``.
        device: as torch names it; a GPU if there is one by default.
        classes: names of those to report, also several in one text, separated by commas; pixels of
            others stay undrawn. All by default.
        score_thr: not taken; each pixel has its best class.

    Raises:
        UsageError: ``score_thr``, or a class that the model does not know.
        CheckpointMismatchError: the checkpoint does not fit.
    """

    def __init__(
        self,
        cfg: Config,
        checkpoint: str,
        device: str | None = None,
        classes: Sequence[str] | None = None,
        score_thr: float | None = None,
    ) -> None:
        if score_thr is not None:
            raise UsageError(
                '--score-thr does nothing for a segmentor, where each pixel has its best class'
            )
        init_default_scope(cfg.get('default_scope', 'mmseg'))
        self._load, self._rest = _split_pipeline(cfg)
        self.model = MODELS.build(_without_start(cfg))
        loaded = load_whole_checkpoint(self.model, checkpoint)
        self.model.to(device or get_device()).eval()
        number = last_head(self.model).num_classes
        self.names, self.colours = _names_and_colours(loaded, number)
        self.categories = [dict(id=i, name=name) for i, name in enumerate(self.names)]
        self._reported = _reported(classes, self.names)
        self.map_type = np.uint8 if number < 255 else np.uint16

    def load(self, path: str) -> np.ndarray:
        """Read an image as the test pipeline does, (H, W, 3) uint8 BGR."""
        return self._load(dict(img_path=path))['img']

    def prepare(self, image: np.ndarray) -> dict:
        """The test pipeline after loading."""
        shape = image.shape[:2]
        return self._rest(dict(img=image, img_shape=shape, ori_shape=shape, img_path=None))

    @torch.no_grad()
    def predict(self, samples: Sequence[dict]) -> list[ClassMap]:
        """Maps at the size of the images; images of one size go through the model together."""
        found: list[ClassMap | None] = [None] * len(samples)
        by_size: dict[tuple, list[int]] = {}
        for index, sample in enumerate(samples):
            by_size.setdefault(tuple(sample['inputs'].shape), []).append(index)
        for indices in by_size.values():
            batch = [samples[index] for index in indices]
            for index, best in zip(indices, self._best_classes(batch)):
                found[index] = self._class_map(best)
        return found

    def _best_classes(self, samples: Sequence[dict]) -> list[torch.Tensor]:
        """(H, W) index of the best class, of images whose inputs have one size."""
        batch = pseudo_collate(list(samples))
        number = getattr(self.model, 'out_channels', 1)
        pixels = sum(math.prod(sample['data_samples'].ori_shape[:2]) for sample in samples)
        if number == 1 or number * pixels <= MAX_SCORES:
            return [result.pred_sem_seg.data[0] for result in self.model.test_step(batch)]
        data = self.model.data_preprocessor(batch, training=False)
        metas = [sample.metainfo for sample in data['data_samples']]
        return [
            best_in_strips(_without_padding(scores, meta), meta['ori_shape'][:2])
            for scores, meta in zip(self.model.inference(data['inputs'], metas), metas)
        ]

    def _class_map(self, best: torch.Tensor) -> ClassMap:
        labels = best.cpu().numpy()
        counts = np.bincount(labels.ravel(), minlength=len(self.names))
        order = np.argsort(-counts, kind='stable')
        areas = {int(i): int(counts[i]) for i in order if counts[i] and self._reported[i]}
        kept = np.where(self._reported[labels], labels, np.iinfo(self.map_type).max)
        return ClassMap(kept.astype(self.map_type), areas)

    def records(self, prediction: ClassMap, image_id: int) -> list[dict]:
        """One per class: ``image_id``, ``category_id``, ``area`` in pixels, ``share`` of all."""
        pixels = prediction.labels.size
        return [
            dict(image_id=image_id, category_id=i, area=area, share=area / pixels)
            for i, area in prediction.areas.items()
        ]

    def class_map(self, prediction: ClassMap) -> np.ndarray:
        """The map as it is written into the folder ``maps``."""
        return prediction.labels

    def describe(self, prediction: ClassMap) -> list[str]:
        """Lines to print."""
        pixels = prediction.labels.size
        areas = list(prediction.areas.items())
        lines = [f'{area / pixels:<8.1%}{self.names[i]}' for i, area in areas[:_DESCRIBED]]
        if len(areas) > _DESCRIBED:
            lines.append(f'        and {len(areas) - _DESCRIBED} more')
        return lines

    def draw(self, image: np.ndarray, prediction: ClassMap) -> np.ndarray:
        """The image under its map, borders between classes in white, and a legend on the right.

        The longer side of the image becomes 640 to 2048 px. Frames of a video are equally large,
        since the legend is as wide as the longest name that the model has.
        """
        image, labels = _resized(image, prediction.labels)
        shown = labels != np.iinfo(self.map_type).max
        colours = np.zeros((int(np.iinfo(self.map_type).max) + 1, 3), np.float32)
        colours[: len(self.names)] = self.colours[:, ::-1]
        picture = image.astype(np.float32)
        painted = (1 - OPACITY) * picture[shown] + OPACITY * colours[labels[shown]]
        picture[shown] = painted
        picture[_borders(labels)] = _BORDER
        return np.hstack([np.rint(picture).astype(np.uint8), self._legend(prediction, len(image))])

    def _legend(self, prediction: ClassMap, height: int) -> np.ndarray:
        """(height, width, 3) BGR: a swatch, the share and the name of each class, by area."""
        letter = max(_MIN_LETTER, height // (2 * _LETTERS))
        font, row = ImageFont.load_default(letter), round(1.6 * letter)
        longest = max(font.getlength(f'100.0 %  {name}') for name in self.names)
        panel = Image.new('RGB', (round(longest + 3.5 * letter), height), _PANEL)
        canvas, rows = ImageDraw.Draw(panel), max(1, (height - letter) // row)
        areas = list(prediction.areas.items())
        listed = areas if len(areas) <= rows else areas[: rows - 1]
        for place, (i, area) in enumerate(listed):
            top = letter // 2 + place * row
            colour = tuple(self.colours[i].tolist())
            canvas.rectangle((letter // 2, top, letter // 2 + letter, top + letter), fill=colour)
            text = f'{100 * area / prediction.labels.size:5.1f} %  {self.names[i]}'
            canvas.text((2 * letter, top), text, font=font, fill=_TEXT)
        if len(listed) < len(areas):
            text = f'and {len(areas) - len(listed)} more'
            canvas.text((2 * letter, letter // 2 + len(listed) * row), text, font=font, fill=_TEXT)
        return np.asarray(panel)[..., ::-1]


def best_in_strips(scores: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Best class of a map that is enlarged bilinearly, a few rows at a time.

    Args:
        scores: (classes, h, w).
        size: (H, W) of the result. All scores of a photo of 24 megapixels, 150 classes each, would
            take 14 GB.

    Returns:
        (H, W) int64, the ``argmax`` of ``F.interpolate(..., align_corners=False)``.
    """
    (number, h, _), (height, width) = scores.shape, size
    rows = torch.arange(height, device=scores.device, dtype=torch.float64)
    places = ((rows + 0.5) * h / height - 0.5).clamp(0, h - 1)
    above = places.floor().long()
    below, weight = (above + 1).clamp(max=h - 1), (places - above).to(scores.dtype)[:, None]
    strip = max(1, MAX_SCORES // (8 * number * width))
    best = []
    for start in range(0, height, strip):
        part = slice(start, start + strip)
        lines = torch.lerp(scores[:, above[part]], scores[:, below[part]], weight[part])
        lines = F.interpolate(
            lines[None], size=(lines.shape[1], width), mode='bilinear', align_corners=False
        )
        best.append(lines[0].argmax(dim=0))
    return torch.cat(best)


def _without_padding(scores: torch.Tensor, meta: dict) -> torch.Tensor:
    """(classes, h, w) without what the data preprocessor added."""
    padding = meta.get('img_padding_size') or meta.get('padding_size') or [0] * 4
    left, right, top, bottom = padding
    return scores[:, top : scores.shape[1] - bottom, left : scores.shape[2] - right]


def _split_pipeline(cfg: Config) -> tuple[Compose, Compose]:
    """The test pipeline without label maps: loading, and what follows."""
    steps = [
        step
        for step in copy.deepcopy(cfg.test_dataloader.dataset.pipeline)
        if step['type'].rpartition('.')[2] != 'LoadAnnotations'
    ]
    return Compose(steps[:1]), Compose(steps[1:])


def _without_start(cfg: Config) -> dict:
    """The model's config without weights that a training would start from."""
    model = copy.deepcopy(cfg.model)
    model.pop('allowed_missing', None)
    if model.get('backbone'):
        model.backbone.pop('init_cfg', None)
    return model


def _names_and_colours(checkpoint: dict, number: int) -> tuple[list[str], np.ndarray]:
    """Names of a model's outputs, and (number, 3) RGB."""
    meta = (checkpoint.get('meta') or {}).get('dataset_meta') or {}
    names = [str(name).strip() for name in meta.get('classes') or ()]
    if len(names) != number:
        names = [f'class {index}' for index in range(number)]
    palette = meta.get('palette')
    if palette is None or np.shape(palette) != (number, 3):
        palette = distinct_colours(number)
    return names, np.asarray(palette, np.uint8)


def _reported(classes: Sequence[str] | None, names: Sequence[str]) -> np.ndarray:
    """(classes,) bool: which of them are reported."""
    if classes is None:
        return np.ones(len(names), bool)
    wanted = [name.strip() for text in classes for name in text.split(',') if name.strip()]
    if not wanted:
        raise UsageError('--classes names no class; expected names, separated by commas')
    for name in wanted:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
            hint = f'near: {", ".join(near)}' if near else f'it has {", ".join(names[:10])} ...'
            raise UsageError(f'--classes: the model knows no {name!r}; {hint}')
    return np.isin(names, wanted)


def _resized(image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Image and map at the size of the drawing."""
    longer = max(labels.shape)
    scale = min(max(longer, MIN_DRAWN_SIDE), MAX_DRAWN_SIDE) / longer
    if scale == 1:
        return image, labels
    size = tuple(max(round(side * scale), 1) for side in labels.shape[::-1])
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return (
        cv2.resize(image, size, interpolation=way),
        cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST),
    )


def _borders(labels: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels whose neighbour below or on the right has another class."""
    border = np.zeros(labels.shape, bool)
    border[:-1] |= labels[:-1] != labels[1:]
    border[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    return border
