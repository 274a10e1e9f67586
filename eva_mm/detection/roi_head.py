"""The cascade RoI head of EVA's detector.

Official code: EVA-01/det/detectron2/modeling/roi_heads/cascade_rcnn.py (cascade),
fast_rcnn.py (scores, NMS), mask_head.py (masks, maskness).
"""

import copy
from collections.abc import Iterator, Sequence

import torch
from mmdet.models import CascadeRoIHead
from mmdet.models.layers import multiclass_nms
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from mmdet.models.task_modules import SamplingResult
from mmdet.models.utils import unpack_gt_instances
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmdet.structures.bbox import bbox2roi, get_box_tensor
from mmdet.utils import ConfigType, InstanceList
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor

from .mask_head import EVAMaskHead
from .precision import heads_in_fp32
from .rle import encode_region
from .task_modules import clip_boxes, nonempty

Features = tuple[Tensor, ...]
MASK_CHUNK = 512  # boxes that go through the mask head at once; bounds memory without a cap


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


def maskness(mask_probs: Tensor) -> Tensor:
    """Mean of the mask probabilities above 0.5, 0 where there is none: (n, h, w) -> (n,)."""
    inside = mask_probs > 0.5
    return (mask_probs * inside).sum(dim=(1, 2)) / inside.sum(dim=(1, 2)).clamp(min=1)


def paste_masks(
    mask_probs: Tensor, boxes: Tensor, shape: tuple[int, int], threshold: float
) -> Tensor:
    """Paste mask probabilities (n, s, s) into boxes (n, 4) of an image: (n, *shape) bool."""
    pasted = torch.zeros(len(boxes), *shape, dtype=torch.bool, device=boxes.device)
    for index, (rows, columns), masks in _paste_regions(mask_probs, boxes, shape, threshold):
        pasted[index, rows, columns] = masks
    return pasted


def paste_rle(
    mask_probs: Tensor, boxes: Tensor, shape: tuple[int, int], threshold: float
) -> list[dict]:
    """As :func:`paste_masks`, as RLE: no image-sized map is kept per box."""
    encoded = []
    for _, (rows, columns), masks in _paste_regions(mask_probs, boxes, shape, threshold):
        encoded += encode_region(masks, (int(columns.start), int(rows.start)), shape)
    return encoded


def _paste_regions(
    mask_probs: Tensor, boxes: Tensor, shape: tuple[int, int], threshold: float
) -> Iterator[tuple[Tensor, tuple[slice, slice], Tensor]]:
    """Yield indices of some boxes, a region that holds them, and their masks there, bool."""
    # One by one on a CPU, where only the pixels of the box are computed.
    on_cpu = boxes.device.type == 'cpu'
    whole = (slice(0, shape[0]), slice(0, shape[1]))
    for index in torch.arange(len(boxes), device=boxes.device).split(1 if on_cpu else 32):
        if len(index) == 0:  # what `split` makes of no boxes
            return
        probs, region = _do_paste_mask(
            mask_probs[index, None], boxes[index], *shape, skip_empty=on_cpu
        )
        yield index, region or whole, probs >= threshold


@MODELS.register_module()
class EVACascadeRoIHead(CascadeRoIHead):
    """Cascade R-CNN head as published with EVA.

    It differs from :class:`mmdet.models.CascadeRoIHead` in this: proposals are sampled once, in
    the first stage; later stages match *all* refined boxes of the stage before, those that came
    from ground truth included, without sampling and without adding ground truth again. Pooled box
    features pass on one third of their gradient. There is one mask head, trained on the positive
    proposals of the first stage and applied to the final boxes. At test time the *probabilities*
    of the stages are averaged. Every stage has the same loss weight. It runs in fp32.

    Args:
        stage_target_stds: per stage the standard deviations of the box deltas, the inverse of the
            published weights; they tell the stages and make them out of one ``bbox_head``.
        bbox_head: one config; ``bbox_coder.target_stds`` is filled in per stage.
        mask_head, mask_roi_extractor: one config each, the former of an :class:`EVAMaskHead`;
            None leaves masks out.
        **kwargs: see :class:`mmdet.models.CascadeRoIHead`. ``test_cfg`` takes ``score_thr``
            (strict), ``nms``, ``max_per_img`` (-1 keeps all, which the published evaluation with
            soft-NMS does; a positive number caps the boxes before the mask head and so bounds its
            work), ``mask_thr_binary``, ``maskness`` (multiply each score by the mean of its
            mask probabilities above 0.5), and ``rle_masks`` (give masks as RLE, encoded one by
            one: for evaluation of very many boxes; pictures need the bool maps).
    """

    def __init__(self, stage_target_stds: Sequence[Sequence[float]], **kwargs):
        self.stage_target_stds = stage_target_stds
        num_stages = len(stage_target_stds)
        super().__init__(num_stages, stage_loss_weights=[1.0] * num_stages, **kwargs)

    def init_bbox_head(self, bbox_roi_extractor: ConfigType, bbox_head: ConfigType) -> None:
        """Build one box head per stage, equal but for the box coder."""
        heads = [copy.deepcopy(bbox_head) for _ in self.stage_target_stds]
        for head, stds in zip(heads, self.stage_target_stds):
            head['bbox_coder']['target_stds'] = stds
        super().init_bbox_head(bbox_roi_extractor, heads)

    def init_mask_head(self, mask_roi_extractor: ConfigType, mask_head: ConfigType) -> None:
        """Build the one mask head.

        Raises:
            TypeError: it is no :class:`EVAMaskHead`.
        """
        self.mask_roi_extractor = MODELS.build(mask_roi_extractor)
        self.mask_head = MODELS.build(mask_head)
        if not isinstance(self.mask_head, EVAMaskHead):
            raise TypeError(
                f'mask_head.type should be EVAMaskHead, got {type(self.mask_head).__name__}'
            )

    # ------------------------------------------------------------------------------ training

    @heads_in_fp32
    def loss(
        self, x: Features, rpn_results_list: InstanceList, batch_data_samples: SampleList
    ) -> dict[str, Tensor]:
        """Losses ``s{stage}.loss_cls``, ``s{stage}.loss_bbox`` and ``loss_mask``.

        Args:
            x: pyramid levels (B, C, h, w), finest first.
            rpn_results_list: per image ``bboxes`` (n, 4), xyxy in input pixels.
            batch_data_samples: with ``gt_instances`` (bboxes, labels, masks).
        """
        gt_instances, _, img_metas = unpack_gt_instances(batch_data_samples)
        boxes = [results.bboxes for results in rpn_results_list]
        losses = {}
        for stage in range(self.num_stages):
            samples = self._match(stage, boxes, gt_instances)
            results = self.bbox_loss(stage, x, samples)
            losses.update({f's{stage}.{k}': v for k, v in results['loss_bbox'].items()})
            # Without boxes there is no such term, and DDP refuses parameters without a gradient.
            losses.setdefault(f's{stage}.loss_cls', 0 * results['cls_score'].sum())
            if stage == 0 and self.with_mask:
                losses.update(self._mask_loss(x, samples, gt_instances))
            if stage < self.num_stages - 1:
                sizes = [len(sample.priors) for sample in samples]
                refined = self._refine(stage, results['rois'], results['bbox_pred'], img_metas)
                boxes = [b[nonempty(b)] for b in refined.detach().split(sizes)]
        return losses

    def _match(
        self, stage: int, boxes: list[Tensor], gt_instances: InstanceList
    ) -> list[SamplingResult]:
        """Match the boxes (n, 4) of each image; the stage's sampler decides which are kept."""
        samples = []
        for image_boxes, gt in zip(boxes, gt_instances):
            priors = InstanceData(priors=get_box_tensor(image_boxes))
            assigned = self.bbox_assigner[stage].assign(priors, gt)
            samples.append(self.bbox_sampler[stage].sample(assigned, priors, gt))
        return samples

    def _bbox_forward(self, stage: int, x: Features, rois: Tensor) -> dict[str, Tensor]:
        extractor = self.bbox_roi_extractor[stage]
        features = extractor(x[: extractor.num_inputs], rois)
        features = _ScaleGradient.apply(features, 1 / self.num_stages)
        cls_score, bbox_pred = self.bbox_head[stage](features)
        return dict(cls_score=cls_score, bbox_pred=bbox_pred, bbox_feats=features)

    def _refine(self, stage: int, rois: Tensor, bbox_pred: Tensor, img_metas: list[dict]) -> Tensor:
        """Apply a stage's deltas to its rois (n, 5) and clip to the images: (n, 4)."""
        boxes = self.bbox_head[stage].bbox_coder.decode(rois[:, 1:], bbox_pred)
        shapes = boxes.new_tensor([meta['img_shape'][:2][::-1] for meta in img_metas])
        limits = shapes.repeat(1, 2)[rois[:, 0].long()]
        return torch.minimum(boxes.clamp(min=0), limits)

    def _mask_forward(self, x: Features, rois: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits (n, K, s, s) of rois (n, 5), or (n, 1, s, s) of their labels (n,)."""
        levels = x[: self.mask_roi_extractor.num_inputs]
        return self.mask_head(self.mask_roi_extractor(levels, rois), labels)

    def _mask_loss(
        self, x: Features, samples: list[SamplingResult], gt_instances: InstanceList
    ) -> dict[str, Tensor]:
        labels = torch.cat([s.pos_gt_labels for s in samples])
        logits = self._mask_forward(x, bbox2roi([s.pos_priors for s in samples]), labels)
        loss = self.mask_head.loss_of_class(logits, samples, gt_instances, self.train_cfg[0])
        return dict(loss_mask=loss)

    # ------------------------------------------------------------------------------- testing

    @heads_in_fp32
    def forward(
        self, x: Features, rpn_results_list: InstanceList, batch_data_samples: SampleList
    ) -> tuple[Tensor, ...]:
        """Raw outputs, for ``mode='tensor'``: logits and deltas of each stage, mask logits."""
        img_metas = [sample.metainfo for sample in batch_data_samples]
        rois = bbox2roi([get_box_tensor(results.bboxes) for results in rpn_results_list])
        outputs = []
        for stage in range(self.num_stages):
            results = self._bbox_forward(stage, x, rois)
            outputs += [results['cls_score'], results['bbox_pred']]
            rois = torch.cat((rois[:, :1], self._refine(stage, rois, outputs[-1], img_metas)), 1)
        if self.with_mask:
            outputs.append(self._mask_forward(x, rois[:100]))
        return tuple(outputs)

    @heads_in_fp32
    def predict(
        self,
        x: Features,
        rpn_results_list: InstanceList,
        batch_data_samples: SampleList,
        rescale: bool = False,
    ) -> InstanceList:
        """Detections of each image, best first unless maskness rescored them.

        Args:
            x: pyramid levels (B, C, h, w), finest first.
            rpn_results_list: per image ``bboxes`` (n, 4), xyxy in input pixels.
            batch_data_samples: with the images' meta information.
            rescale: give boxes and masks in the original image instead of the network input.

        Returns:
            Per image ``bboxes`` (n, 4), ``scores`` (n,), ``labels`` (n,) and, with a mask head,
            ``masks`` (n, H, W) bool, or n RLEs with ``rle_masks``. Boxes are clipped to the image
            and never empty.
        """
        img_metas = [sample.metainfo for sample in batch_data_samples]
        results_list = self.predict_bbox(x, img_metas, rpn_results_list, self.test_cfg)
        if self.with_mask:
            self.predict_mask_probs(x, results_list, self.test_cfg)
        return [
            self._to_image(results, meta, rescale) for results, meta in zip(results_list, img_metas)
        ]

    def predict_bbox(
        self,
        x: Features,
        batch_img_metas: list[dict],
        rpn_results_list: InstanceList,
        rcnn_test_cfg: ConfigDict,
        rescale: bool = False,
        **kwargs,
    ) -> InstanceList:
        """Boxes (in input pixels), scores and labels of each image after NMS."""
        sizes = [len(results.bboxes) for results in rpn_results_list]
        rois = bbox2roi([get_box_tensor(results.bboxes) for results in rpn_results_list])
        probs = 0
        for stage in range(self.num_stages):
            outputs = self._bbox_forward(stage, x, rois)
            probs = probs + self._class_probs(stage, outputs['cls_score'])
            boxes = self._refine(stage, rois, outputs['bbox_pred'], batch_img_metas)
            rois = torch.cat((rois[:, :1], boxes), dim=1)
        probs = probs / self.num_stages
        return [
            self._select(image_boxes, image_probs, rcnn_test_cfg)
            for image_boxes, image_probs in zip(boxes.split(sizes), probs.split(sizes))
        ]

    def _class_probs(self, stage: int, cls_score: Tensor) -> Tensor:
        """Logits (n, K + 1) -> probabilities of the same shape."""
        head = self.bbox_head[stage]
        if head.custom_activation:
            return head.loss_cls.get_activation(cls_score)
        return cls_score.softmax(dim=1)

    @staticmethod
    def _select(boxes: Tensor, probs: Tensor, cfg: ConfigDict) -> InstanceData:
        finite = boxes.isfinite().all(dim=1) & probs.isfinite().all(dim=1)
        detections, labels = multiclass_nms(
            boxes[finite], probs[finite], cfg.score_thr, cfg.nms, cfg.max_per_img
        )
        return InstanceData(bboxes=detections[:, :4], scores=detections[:, 4], labels=labels)

    def predict_mask_probs(
        self, x: Features, results_list: InstanceList, rcnn_test_cfg: ConfigDict
    ) -> InstanceList:
        """Add ``mask_probs`` (n, s, s) of the predicted class to boxes in input pixels.

        With ``rcnn_test_cfg.maskness`` the scores are multiplied by the masks' certainty.
        """
        for index, results in enumerate(results_list):
            rois = results.bboxes.new_full((len(results), 5), index)
            rois[:, 1:] = results.bboxes
            chunks = [
                self._class_mask_logits(x, *chunk)
                for chunk in zip(rois.split(MASK_CHUNK), results.labels.split(MASK_CHUNK))
            ]
            results.mask_probs = torch.cat(chunks).sigmoid()
            if rcnn_test_cfg.get('maskness', False):
                results.scores = results.scores * maskness(results.mask_probs)
        return results_list

    def _class_mask_logits(self, x: Features, rois: Tensor, labels: Tensor) -> Tensor:
        """Logits (n, s, s) of the labels (n,)."""
        return self._mask_forward(x, rois, labels)[:, 0]

    def _to_image(self, results: InstanceData, meta: dict, rescale: bool) -> InstanceData:
        """Boxes clipped to the image, empty ones dropped, masks pasted."""
        shape = meta['ori_shape' if rescale else 'img_shape'][:2]
        boxes = results.bboxes
        if rescale:
            boxes = boxes / boxes.new_tensor(meta['scale_factor']).repeat(2)
        results.bboxes = clip_boxes(boxes, shape)
        results = results[nonempty(results.bboxes)]
        if self.with_mask:
            threshold = self.test_cfg.mask_thr_binary
            probs = results.pop('mask_probs')
            paste = paste_rle if self.test_cfg.get('rle_masks', False) else paste_masks
            results.masks = paste(probs, results.bboxes, shape, threshold)
        return results
