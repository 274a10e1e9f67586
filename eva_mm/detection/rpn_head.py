"""Region proposals as published: constant loss normaliser, ranking by logit, fp32."""

import torch
from mmcv.ops import batched_nms
from mmdet.models import RPNHead
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor

from .precision import heads_in_fp32
from .task_modules import nonempty


@MODELS.register_module()
class EVARPNHead(RPNHead):
    """mmdet's RPN head with what the published detector does otherwise.

    - Both losses are divided by ``sampler.num * images``, however many anchors were sampled
      (EVA-01/det/detectron2/modeling/proposal_generator/rpn.py).
    - Proposals are ranked by logit: a sigmoid in fp32 merges logits that differ.
    - Everything runs in fp32.
    """

    loss_and_predict = heads_in_fp32(RPNHead.loss_and_predict)
    loss = heads_in_fp32(RPNHead.loss)
    predict = heads_in_fp32(RPNHead.predict)

    def get_targets(self, anchor_list, valid_flag_list, batch_gt_instances, *args, **kwargs):
        """Targets of the base class, with the constant normaliser as ``avg_factor``."""
        targets = super().get_targets(
            anchor_list, valid_flag_list, batch_gt_instances, *args, **kwargs
        )
        avg_factor = self.train_cfg['sampler']['num'] * len(batch_gt_instances)
        return (*targets[:4], avg_factor, *targets[5:])

    def _predict_by_feat_single(
        self,
        cls_score_list: list[Tensor],
        bbox_pred_list: list[Tensor],
        score_factor_list: list,
        mlvl_priors: list[Tensor],
        img_meta: dict,
        cfg: ConfigDict | None = None,
        rescale: bool = False,
        with_nms: bool = True,
    ) -> InstanceData:
        """Proposals of one image.

        Args:
            cls_score_list: logits (anchors, h, w) of each level.
            bbox_pred_list: deltas (anchors * 4, h, w) of each level.
            mlvl_priors: anchors (h * w * anchors, 4) of each level, xyxy in input pixels.
            img_meta: needs 'img_shape', the size to clip to, and 'scale_factor' with ``rescale``.
            rescale: give boxes in the original image instead of the network input.

        Returns:
            bboxes (n, 4) in pixels, xyxy, scores (n,) as logits, best first, labels (n,) of 0.
        """
        assert with_nms, 'proposals always go through NMS'
        cfg = self.test_cfg if cfg is None else cfg
        boxes, scores, levels = [], [], []
        for level, (logits, deltas, priors) in enumerate(
            zip(cls_score_list, bbox_pred_list, mlvl_priors)
        ):
            logits = logits.permute(1, 2, 0).flatten()
            deltas = deltas.permute(1, 2, 0).reshape(-1, 4)
            top = logits.topk(min(cfg.nms_pre, len(logits))).indices
            boxes.append(
                self.bbox_coder.decode(priors[top], deltas[top], max_shape=img_meta['img_shape'])
            )
            scores.append(logits[top])
            levels.append(torch.full_like(top, level))
        boxes, scores, levels = torch.cat(boxes), torch.cat(scores), torch.cat(levels)
        valid = nonempty(boxes) & boxes.isfinite().all(dim=1) & scores.isfinite()
        boxes, scores, levels = boxes[valid], scores[valid], levels[valid]
        if rescale:
            boxes = boxes / boxes.new_tensor(img_meta['scale_factor']).repeat(2)
        keep = torch.zeros(0, dtype=torch.long, device=boxes.device)
        if len(boxes):  # mmcv's batched_nms cannot take none
            keep = batched_nms(boxes, scores, levels, cfg.nms)[1][: cfg.max_per_img]
        return InstanceData(
            bboxes=boxes[keep], scores=scores[keep], labels=torch.zeros_like(levels[keep])
        )
