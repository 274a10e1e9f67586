"""Classifiers in `tools/infer.py`: the best classes of a picture, or of names that a user gives."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, default_collate
from mmengine.device import get_device
from mmengine.registry import MODELS, init_default_scope
from PIL import Image, ImageDraw, ImageFont, ImageOps
from timm.data import ImageNetInfo

from eva_mm.engine.image_data import open_rgb
from eva_mm.engine.strict_loading import load_whole_checkpoint
from eva_mm.errors import UsageError

from .datasets import read_classes

TOP = 5
_MIN_LETTER = 12  # height in pixels
_LETTERS = 24  # lines that would fit on a drawing


class ClassificationPredictor:
    """A classifier, EVA's or zero-shot; see :class:`eva_mm.engine.inference.Predictor`.

    Images go through the config's test pipeline, but are turned upright first where their EXIF
    data say so.

    Args:
        cfg: with ``model`` and ``test_dataloader``.
        checkpoint: path, URL or ``eva://`` name. Class names are those of its
            ``meta.dataset_meta``, else those of the config's test data, else of ImageNet where
            the number fits; WordNet ids are written out.
        device: as torch names it; a GPU if there is one by default.
        classes: names, also several in one text, separated by commas. A zero-shot model chooses
            among them (each goes into the config's ``own_class_templates``, by default as it
            is); any other reports these classes only.
        score_thr: leave out probabilities at or below it.

    Attributes:
        header: columns of :meth:`row`.

    Raises:
        UsageError: ``score_thr`` out of range, or a class that the model does not know.
        CheckpointMismatchError: the checkpoint does not fit.
    """

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
        init_default_scope(cfg.get('default_scope', 'mmengine'))
        self.score_thr = score_thr
        self.pipeline = Compose(cfg.test_dataloader.dataset.pipeline)
        self.model = MODELS.build(cfg.model)
        # Without a line on the standard output, where the classes are told; misfits are errors.
        loaded = load_whole_checkpoint(self.model, checkpoint)
        self.model.to(device or get_device()).eval()
        wanted = None if classes is None else _split(classes)
        if hasattr(self.model, 'set_classes'):
            if wanted:
                self.model.set_classes(wanted, cfg.get('own_class_templates', ['{}']))
            self.names = list(self.model.classes)
            self._reported = frozenset(range(len(self.names)))
        else:
            self.names = class_names(loaded, cfg, self.model.num_classes)
            self._reported = _labels_of(wanted or self.names, self.names)
        self.categories = [dict(id=i, name=name) for i, name in enumerate(self.names)]
        # What a user asks for is told whole.
        self.top = len(self._reported) if wanted else min(TOP, len(self.names))
        self.header = [
            column for n in range(1, self.top + 1) for column in (f'class_{n}', f'probability_{n}')
        ]

    def load(self, path: str) -> np.ndarray:
        """Read an image upright, (H, W, 3) uint8 BGR."""
        return np.ascontiguousarray(np.asarray(ImageOps.exif_transpose(open_rgb(path)))[..., ::-1])

    def prepare(self, image: np.ndarray) -> torch.Tensor:
        """The test pipeline: uint8 (3, h, w)."""
        picture = Image.fromarray(np.ascontiguousarray(image[..., ::-1]))
        return self.pipeline(dict(image=picture, img_path=''))['image']

    @torch.no_grad()
    def predict(self, samples: Sequence[torch.Tensor]) -> list[list[tuple[int, float]]]:
        """Per image the best classes and their probabilities, the best first."""
        found = self.model.test_step(dict(image=default_collate(list(samples))))
        return [self._best(result['logits']) for result in found]

    def _best(self, logits: torch.Tensor) -> list[tuple[int, float]]:
        """Probabilities are those among all classes, also where some are reported only."""
        probabilities = logits.float().softmax(0).cpu()
        labels = probabilities.argsort(descending=True, stable=True).tolist()
        labels = [label for label in labels if label in self._reported]
        best = [(label, float(probabilities[label])) for label in labels[: self.top]]
        return [(label, score) for label, score in best if score > self.score_thr]

    def records(self, prediction: list[tuple[int, float]], image_id: int) -> list[dict]:
        """One per class: ``image_id``, ``category_id`` (from 0) and ``score``, a probability."""
        return [dict(image_id=image_id, category_id=i, score=score) for i, score in prediction]

    def row(self, prediction: list[tuple[int, float]]) -> list[str]:
        """Cells of a table under :attr:`header`; empty where fewer classes are reported."""
        cells = [text for i, score in prediction for text in (self.names[i], f'{score:.6g}')]
        return cells + [''] * (len(self.header) - len(cells))

    def describe(self, prediction: list[tuple[int, float]]) -> list[str]:
        """Lines to print."""
        return [f'{score:<12.5g}{self.names[i]}' for i, score in prediction]

    def draw(self, image: np.ndarray, prediction: list[tuple[int, float]]) -> np.ndarray:
        """The best classes and their probabilities in percent, in the upper left corner."""
        picture = Image.fromarray(np.ascontiguousarray(image[..., ::-1]))
        height = max(_MIN_LETTER, min(picture.size) // _LETTERS)
        text = '\n'.join(f'{100 * score:5.1f} %  {self.names[i]}' for i, score in prediction)
        canvas = ImageDraw.Draw(picture, 'RGBA')
        font = ImageFont.load_default(height)
        place = (height // 2, height // 2)
        left, top, right, bottom = canvas.multiline_textbbox(place, text, font=font)
        border = height // 4
        area = (left - border, top - border, right + border, bottom + border)
        canvas.rectangle(area, fill=(0, 0, 0, 150))
        canvas.multiline_text(place, text, font=font, fill=(255, 255, 255))
        return np.ascontiguousarray(np.asarray(picture)[..., ::-1])


def class_names(checkpoint: dict, cfg: Config, number: int) -> list[str]:
    """Names of a classifier's outputs; see :class:`ClassificationPredictor`."""
    meta = (checkpoint.get('meta') or {}).get('dataset_meta') or {}
    candidates = [meta.get('classes'), cfg.test_dataloader.dataset.get('classes')]
    candidates += ['imagenet-1k', 'imagenet-22k']
    for candidate in candidates:
        names = read_classes(candidate) if candidate else ()
        if names and len(names) == number:
            words = ImageNetInfo('imagenet-22k').label_descriptions(as_dict=True)
            return [words.get(name, name) for name in names]
    return [f'class {index}' for index in range(number)]


def _split(classes: Sequence[str]) -> list[str]:
    names = [name.strip() for text in classes for name in text.split(',')]
    names = list(dict.fromkeys(name for name in names if name))
    if not names:
        raise UsageError('--classes names no class; expected names, separated by commas')
    return names


def _labels_of(wanted: Sequence[str], names: Sequence[str]) -> frozenset[int]:
    """Outputs of the classes named in full, or by one of several words for the same."""
    words: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        for word in {name, *name.split(', ')}:
            words.setdefault(word, []).append(index)
    for name in wanted:
        if name not in words:
            near = difflib.get_close_matches(name, words, n=3, cutoff=0.6)
            hint = f'near: {", ".join(near)}' if near else f'it has {"; ".join(names[:5])} ...'
            raise UsageError(f'--classes: the model knows no {name!r}; {hint}')
    return frozenset(index for name in wanted for index in words[name])
