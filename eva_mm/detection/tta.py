"""Test-time augmentation of the cascade detector: flips and scales, with masks.

The order is that of detectron2's ``GeneralizedRCNNWithTTA``: boxes of all views are merged first,
then masks are computed in every view for the merged boxes, and their probabilities averaged.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from mmcv.ops import batched_nms
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample, SampleList
from mmdet.structures.bbox import bbox_mapping, bbox_mapping_back
from mmdet.utils import ConfigType
from mmengine.config import ConfigDict
from mmengine.model import BaseTTAModel
from mmengine.structures import InstanceData
from torch import Tensor, nn

from eva_mm.errors import InputError

from .precision import heads_in_fp32
from .roi_head import EVACascadeRoIHead, Features, maskness
from .task_modules import clip_boxes, nonempty

_FLIPPED_AXES = {'horizontal': (-1,), 'vertical': (-2,), 'diagonal': (-2, -1)}


class View(NamedTuple):
    """One augmentation of a batch.

    Attributes:
        features: pyramid levels (B, C, h, w), finest first; empty where masks are not wanted.
        samples: per image its meta information and, as ``pred_instances``, candidates.
    """

    features: Features
    samples: SampleList


def boxes_to_view(boxes: Tensor, meta: dict) -> Tensor:
    """Boxes (n, 4), xyxy in the original image, to the pixels of a view."""
    factor = (*meta['scale_factor'], *meta['scale_factor'])
    return bbox_mapping(boxes, meta['img_shape'], factor, *_flip(meta))


def boxes_to_image(boxes: Tensor, meta: dict) -> Tensor:
    """Inverse of :func:`boxes_to_view`, clipped to the original image."""
    factor = (*meta['scale_factor'], *meta['scale_factor'])
    mapped = bbox_mapping_back(boxes, meta['img_shape'], factor, *_flip(meta))
    return clip_boxes(mapped, meta['ori_shape'][:2])


def unflip_masks(masks: Tensor, meta: dict) -> Tensor:
    """Masks (n, h, w) of a view's boxes as the unflipped image shows them."""
    flipped, direction = _flip(meta)
    return masks.flip(_FLIPPED_AXES[direction]) if flipped else masks


def _flip(meta: dict) -> tuple[bool, str]:
    return bool(meta.get('flip')), meta.get('flip_direction') or 'horizontal'


@MODELS.register_module()
class EVADetTTAModel(BaseTTAModel):
    """Test-time augmentation of a detector with :class:`EVACascadeRoIHead`, boxes and masks.

    Candidates of all views, *before* any NMS, go through one NMS of the run's own kind in the
    original image; so a view that shows the same as another one changes nothing, with soft-NMS
    too. (detectron2 runs NMS in each view and again over all.) The mask of a merged box is the
    mean of the probabilities that each view gives it, turned back; with ``maskness`` the score is
    multiplied by the certainty of that mean. The authors published no such evaluation.

    Args:
        module: the detector or its config.
        tta_cfg: keys that replace those of the run's ``test_cfg.rcnn`` when views are merged:
            ``score_thr``, ``nms``, ``max_per_img``, ``maskness``.
        pad_divisor: pad each view to a square, its longer side rounded up to a multiple of this
            many pixels (of the largest image of a batch). None pads every view to the run's own
            ``pad_size``, which must hold it.
        data_preprocessor: replaces that of ``module``'s config.

    Raises:
        InputError: the detector has another RoI head; ``pad_divisor`` is no multiple of the
            patches, or the preprocessor pads to no fixed size.
    """

    def __init__(
        self,
        module: ConfigType | nn.Module,
        tta_cfg: ConfigType | None = None,
        pad_divisor: int | None = None,
        data_preprocessor: ConfigType | None = None,
    ):
        super().__init__(module, data_preprocessor)
        head = getattr(self.module, 'roi_head', None)
        if not isinstance(head, EVACascadeRoIHead):
            raise InputError(
                'EVADetTTAModel needs a detector with EVACascadeRoIHead, '
                f'found {type(head).__name__} (for boxes alone use DetTTAModel)'
            )
        self.cfg = ConfigDict({**head.test_cfg, **(tta_cfg or {})})
        self.pad_divisor = pad_divisor
        if pad_divisor is not None:
            self._check_padding(pad_divisor)

    def _check_padding(self, divisor: int) -> None:
        patch = self.module.backbone.patch_embed.patch_size
        if divisor < 1 or divisor % patch:
            raise InputError(f'pad_divisor should be a multiple of {patch} px, found {divisor}')
        if not hasattr(self.module.data_preprocessor, 'pad_size'):
            raise InputError(
                'pad_divisor needs FixedSizeDetDataPreprocessor, '
                f'found {type(self.module.data_preprocessor).__name__}'
            )

    def test_step(self, data: dict) -> SampleList:
        """Detections of a batch of views.

        Args:
            data: ``inputs`` and ``data_samples``, each a list over views of a list over images;
                as ``TestTimeAug`` and ``pseudo_collate`` give them. The samples tell
                ``ori_shape``, ``img_shape``, ``scale_factor``, ``flip`` and ``flip_direction``.

        Returns:
            Per image the first view's sample, with ``pred_instances`` in the original image:
            ``bboxes`` (n, 4), ``scores`` (n,), ``labels`` (n,) and, with a mask head, ``masks``
            (n, H, W) bool.
        """
        head = self.module.roi_head
        views = [self._look(*view) for view in zip(data['inputs'], data['data_samples'])]
        samples = self.merge_preds(list(zip(*(view.samples for view in views))))
        if head.with_mask:
            self._add_masks(views, samples)
        for sample in samples:
            frame = dict(img_shape=sample.ori_shape)
            sample.pred_instances = head._to_image(sample.pred_instances, frame, rescale=False)
        return samples

    def _look(self, inputs: Sequence[Tensor], samples: SampleList) -> View:
        with self._padding_of(inputs):
            data = self.module.data_preprocessor(dict(inputs=inputs, data_samples=samples), False)
        samples = data['data_samples']
        features = self.module.extract_feat(data['inputs'])
        proposals = self.module.rpn_head.predict(features, samples, rescale=False)
        for sample, found in zip(samples, self._candidates(features, samples, proposals)):
            sample.pred_instances = found
        return View(features if self.module.roi_head.with_mask else (), samples)

    @contextmanager
    def _padding_of(self, inputs: Sequence[Tensor]) -> Iterator[None]:
        """Let the preprocessor pad to this view's square, if asked to."""
        if self.pad_divisor is None:
            yield
            return
        preprocessor = self.module.data_preprocessor
        before = preprocessor.pad_size
        longest = max(side for image in inputs for side in image.shape[-2:])
        side = math.ceil(longest / self.pad_divisor) * self.pad_divisor
        preprocessor.pad_size = (side, side)
        try:
            yield
        finally:
            preprocessor.pad_size = before

    @heads_in_fp32
    def _candidates(
        self, features: Features, samples: SampleList, proposals: list[InstanceData]
    ) -> list[InstanceData]:
        """Boxes in the original image, scores and labels of each image, before NMS."""
        # Soft-NMS never raises a score, so what lies below its floor cannot survive.
        floor = max(self.cfg.score_thr, self.cfg.nms.get('min_score', 0.0))
        cfg = ConfigDict(score_thr=floor, nms=None, max_per_img=-1)
        metas = [sample.metainfo for sample in samples]
        found = self.module.roi_head.predict_bbox(features, metas, proposals, cfg)
        for results, meta in zip(found, metas):
            results.bboxes = boxes_to_image(results.bboxes, meta)
        return found

    def merge_preds(self, data_samples_list: list[Sequence[DetDataSample]]) -> SampleList:
        """Merge boxes.

        Args:
            data_samples_list: per image one sample per view, ``pred_instances`` being candidates
                in the original image.

        Returns:
            Per image the first view's sample with the merged ``pred_instances``.
        """
        for views in data_samples_list:
            candidates = InstanceData.cat([view.pred_instances for view in views])
            views[0].pred_instances = self._merge(candidates)
        return [views[0] for views in data_samples_list]

    def _merge(self, candidates: InstanceData) -> InstanceData:
        candidates = candidates[nonempty(candidates.bboxes)]
        if len(candidates) == 0:
            return candidates
        boxes, scores, labels = candidates.bboxes, candidates.scores, candidates.labels
        detections, kept = batched_nms(boxes, scores, labels, self.cfg.nms)
        cap = self.cfg.max_per_img if self.cfg.max_per_img > 0 else len(kept)
        return InstanceData(
            bboxes=detections[:cap, :4], scores=detections[:cap, 4], labels=labels[kept][:cap]
        )

    def _add_masks(self, views: Sequence[View], samples: SampleList) -> None:
        """Add ``mask_probs`` (n, s, s) to the merged boxes: the mean over the views."""
        merged = [sample.pred_instances for sample in samples]
        totals = None
        for view in views:
            metas = [sample.metainfo for sample in view.samples]
            probs = self._view_masks(view.features, merged, metas)
            totals = probs if totals is None else [a + b for a, b in zip(totals, probs)]
        for results, total in zip(merged, totals):
            results.mask_probs = total / len(views)
            if self.cfg.get('maskness', False):
                results.scores = results.scores * maskness(results.mask_probs)

    @heads_in_fp32
    def _view_masks(
        self, features: Features, merged: list[InstanceData], metas: list[dict]
    ) -> list[Tensor]:
        """Mask probabilities (n, s, s) of merged boxes in one view, turned back."""
        in_view = [
            InstanceData(bboxes=boxes_to_view(results.bboxes, meta), labels=results.labels)
            for results, meta in zip(merged, metas)
        ]
        found = self.module.roi_head.predict_mask_probs(features, in_view, ConfigDict())
        return [unflip_masks(results.mask_probs, meta) for results, meta in zip(found, metas)]
