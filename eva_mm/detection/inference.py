"""Detectors in `tools/infer.py`, on mmdet's own inferencer and visualizer."""

from __future__ import annotations

import copy
import difflib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from logging import WARNING
from typing import Any

import cv2
import numpy as np
import torch
from mmdet.apis import DetInferencer
from mmdet.datasets import CocoDataset
from mmdet.datasets.transforms import InferencerLoader
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.logging import print_log
from mmengine.structures import InstanceData
from pycocotools import mask as mask_utils
from torch import nn

from eva_mm.engine.curves import plain_text
from eva_mm.errors import UsageError

from .cocofied import COCO_IDS
from .metrics import EVACocoMetric
from .rle import encode_masks

MAX_DRAWN_SIDE = 2048  # pixels
_MASKS_AT_ONCE = 100  # decoded for a drawing: up to 4 MB each


class _Inferencer(DetInferencer):
    def _init_collate(self, cfg: Config) -> Callable:
        # What the base class ends at too, after a warning of a registry that mmdet does not have.
        return pseudo_collate


class DetectionPredictor:
    """A detector of mmdet, EVA's or any other; see :class:`eva_mm.engine.inference.Predictor`.

    Detections at or below ``score_thr`` are left out of results and drawings. They are dropped
    before NMS already, which bounds the number of masks and leaves the others as they are: NMS
    (soft-NMS, maskness) only ever lowers a score, by better boxes.

    Category ids of records are those of the checkpoint's ``meta.dataset_meta['category_ids']``;
    without it COCO's where the classes are COCO's, and else they count from 1 in the order of the
    model's outputs, which gives LVIS's.

    Args:
        cfg: with ``model``, ``test_dataloader`` and, if pictures are drawn another way than
            mmdet's default, ``visualizer``.
        checkpoint: path, URL or ``eva://`` name. Class names are those of its
            ``meta.dataset_meta``.
        device: as torch names it; a GPU if there is one by default.
        score_thr: in [0, 1).
        classes: names of those to report; all by default.

    Raises:
        UsageError: ``score_thr`` out of range, or a class that the model does not know.
        CheckpointMismatchError: the checkpoint does not fit.
    """

    def __init__(
        self,
        cfg: Config,
        checkpoint: str,
        device: str | None = None,
        score_thr: float = 0.3,
        classes: Sequence[str] | None = None,
    ) -> None:
        if not 0 <= score_thr < 1:
            raise UsageError(f'--score-thr takes a score from 0 to below 1, not {score_thr:g}')
        cfg = copy.deepcopy(cfg)
        cfg.setdefault('visualizer', ConfigDict(type='DetLocalVisualizer', name='visualizer'))
        cfg.visualizer.vis_backends = None  # drawings are written here
        raise_threshold(cfg.model, score_thr)
        if cfg.model.get('roi_head', {}).get('type') == 'EVACascadeRoIHead':
            cfg.model.test_cfg.rcnn.rle_masks = True  # without a bitmap per mask in between
        self.score_thr = score_thr
        with _quiet():
            self.inferencer = _Inferencer(cfg, checkpoint, device, show_progress=False)
        steps = self.inferencer.pipeline.transforms
        self._loader = next(step for step in steps if isinstance(step, InferencerLoader))
        names = _name_outputs(self.inferencer.model)
        meta = self.inferencer.model.dataset_meta
        drawn = [plain_text(name) for name in names]
        self.inferencer.visualizer.dataset_meta = {**meta, 'classes': drawn}
        self.category_ids = _category_ids(meta, names)
        self.categories = [dict(id=i, name=name) for i, name in zip(self.category_ids, names)]
        self._labels = None if classes is None else _labels_of(classes, names)

    def load(self, path: str) -> np.ndarray:
        """Read an image upright, by the test pipeline's own loader."""
        return self._loader.from_file(dict(img_path=path))['img']

    def prepare(self, image: np.ndarray) -> dict:
        """The test pipeline after loading."""
        return self.inferencer.pipeline(image)

    def predict(self, samples: Sequence[dict]) -> list[InstanceData]:
        """Detections above the threshold, on the CPU, in pixels of the images as they were.

        Masks are run lengths: a hundred bitmaps of a large photo would take gigabytes.
        """
        found = self.inferencer.forward(self.inferencer.collate_fn(samples))
        return [self._compact(found.pop(0).pred_instances) for _ in samples]

    def _compact(self, instances: InstanceData) -> InstanceData:
        masks = instances.pop('masks', None)
        keep = instances.scores > self.score_thr
        if self._labels is not None:
            keep &= torch.isin(instances.labels, self._labels.to(keep.device))
        kept = instances[keep].cpu()
        if isinstance(masks, torch.Tensor):
            kept.masks = encode_masks(masks if keep.all() else masks[keep])
        elif masks is not None:
            kept.masks = [mask for mask, wanted in zip(masks, keep.tolist()) if wanted]
        return kept

    def records(self, prediction: InstanceData, image_id: int) -> list[dict]:
        """COCO's results format: ``bbox`` is x, y, width, height; masks are run lengths."""
        found = {key: prediction[key] for key in ('scores', 'labels', 'bboxes')}
        if 'masks' in prediction:
            found['masks'] = prediction.masks
        return EVACocoMetric._to_records(dict(found, img_id=image_id), self.category_ids)

    def draw(self, image: np.ndarray, prediction: InstanceData) -> np.ndarray:
        """Boxes, masks, names and scores in percent, by the config's visualizer.

        Returns:
            (h, w, 3) uint8 BGR, of the image's size, or with a longer side of ``MAX_DRAWN_SIDE``:
            lines and letters have a fixed size, too fine to be seen on a larger picture.
        """
        height, width = image.shape[:2]
        scale = min(MAX_DRAWN_SIDE / max(height, width), 1)
        if scale < 1:
            size = max(round(width * scale), 1), max(round(height * scale), 1)
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        drawn = np.ascontiguousarray(image[..., ::-1])
        # The best last, on top of the others.
        starts = range(0, max(len(prediction), 1), _MASKS_AT_ONCE)
        for start in reversed(starts):
            drawn = self._draw_part(drawn, prediction[start : start + _MASKS_AT_ONCE], scale)
        return drawn[..., ::-1]

    def _draw_part(self, image: np.ndarray, part: InstanceData, scale: float) -> np.ndarray:
        shown = InstanceData(**{k: part[k] for k in ('scores', 'labels')})
        shown.bboxes = part.bboxes * scale
        if 'masks' in part:
            shown.masks = decode_masks(part.masks, image.shape[:2])
        visualizer = self.inferencer.visualizer
        with _quiet(), _fixed_colors():
            visualizer.add_datasample(
                '',
                image,
                DetDataSample(pred_instances=shown),
                draw_gt=False,
                pred_score_thr=self.score_thr,
            )
        return visualizer.get_image()


def decode_masks(masks: Sequence[dict], shape: tuple[int, int]) -> np.ndarray:
    """Run lengths as bitmaps (n, *shape), bool: of their own size, or a smaller one (nearest)."""
    bitmaps = np.zeros((len(masks), *shape), dtype=bool)
    for bitmap, mask in zip(bitmaps, masks):
        rows, columns = (
            (np.arange(new) + 0.5) * old // new for new, old in zip(shape, mask['size'])
        )
        bitmap[:] = mask_utils.decode(mask)[np.ix_(rows.astype(int), columns.astype(int))]
    return bitmaps


def raise_threshold(model: ConfigDict, score_thr: float) -> None:
    """Let a detector's config drop boxes at ``score_thr`` before NMS, unless it does earlier."""
    test_cfg = model.get('test_cfg') or {}
    last = test_cfg.get('rcnn', test_cfg)
    if 'score_thr' in last:
        last['score_thr'] = max(last['score_thr'], score_thr)


def _name_outputs(model: nn.Module) -> list[str]:
    """Class names per output; mmdet takes COCO's where the checkpoint has none."""
    meta = model.dataset_meta
    names = list(meta['classes'])
    number = _number_of_classes(model)
    if number is not None and len(names) != number:
        print_log(
            f'the checkpoint names no classes, or {len(names)} of its {number}: they are called '
            'class 1, class 2, ... (published weights by eva://NAME bring their names)',
            'current',
            WARNING,
        )
        names = [f'class {index}' for index in range(1, number + 1)]
        meta['classes'] = names
    if isinstance(meta.get('palette'), (list, tuple)) and len(meta['palette']) < len(names):
        meta['palette'] = 'random'
    return names


def _number_of_classes(model: nn.Module) -> int | None:
    owner = getattr(model, 'roi_head', model)
    head = getattr(owner, 'bbox_head', None)
    if isinstance(head, nn.ModuleList):  # a cascade
        head = head[0]
    return getattr(head, 'num_classes', None)


def _category_ids(meta: dict, names: Sequence[str]) -> list[int]:
    told = meta.get('category_ids')
    if told is not None and len(told) == len(names):
        return [int(number) for number in told]
    is_coco = tuple(names) == tuple(CocoDataset.METAINFO['classes'])
    return list(COCO_IDS) if is_coco else list(range(1, len(names) + 1))


def _labels_of(classes: Sequence[str], names: Sequence[str]) -> torch.Tensor:
    for name in classes:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
            hint = f'near: {", ".join(near)}' if near else f'it has {", ".join(names[:10])} ...'
            raise UsageError(f'--classes: the model knows no {name!r}; {hint}')
    return torch.tensor([index for index, name in enumerate(names) if name in classes])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without mmdet's warnings of a palette it chooses, and of boxes that touch the border."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)
        yield


@contextmanager
def _fixed_colors() -> Iterator[Any]:
    """mmdet jitters the masks' colors at random; a picture should be the same when drawn again."""
    state = np.random.get_state()
    np.random.seed(0)
    try:
        yield
    finally:
        np.random.set_state(state)
