"""Inputs for benchmarks of the cascade detector, and what only a trained one would give.

Images and objects are made up; proposals, scores and masks take the place of what random weights
give, while the layers that would make them run all the same.
"""

from __future__ import annotations

import functools

OBJECTS = 12
PROPOSALS = 1000


def make_objects(side: int, seed: int = 0):
    """Boxes (n, 4), xyxy in pixels, of objects of many sizes."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    sides = side * 2 ** (-4 + 3 * torch.rand(OBJECTS, 1, generator=generator))
    corners = torch.rand(OBJECTS, 2, generator=generator) * (side - sides)
    return torch.cat((corners, corners + sides), dim=1)


def make_proposals(objects, side: int, seed: int = 1):
    """A quarter of the boxes jittered around the objects, the others anywhere: (n, 4)."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    near = objects[torch.arange(PROPOSALS // 4) % len(objects)]
    near = near + 0.1 * (near[:, 2:] - near[:, :2]).repeat(1, 2) * (
        torch.rand(len(near), 4, generator=generator) - 0.5
    )
    rest = PROPOSALS - len(near)
    sides = side * 2 ** (-6 + 5 * torch.rand(rest, 2, generator=generator))
    corners = torch.rand(rest, 2, generator=generator) * (side - sides)
    return torch.cat((near, torch.cat((corners, corners + sides), dim=1))).clamp(0, side)


def make_data(side: int, num_classes: int, training: bool) -> dict:
    """A batch of one image, as the pipelines give it: pixels, boxes and polygons."""
    import numpy as np
    import torch
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import PolygonMasks
    from mmengine.structures import InstanceData

    shape = (side, side)
    sample = DetDataSample(
        metainfo=dict(
            img_shape=shape, ori_shape=(side // 2, side // 2), pad_shape=shape,
            scale_factor=(2.0, 2.0), batch_input_shape=shape,
        )
    )  # fmt: skip
    if training:
        boxes = make_objects(side)
        angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        circle = np.stack((np.cos(angle), np.sin(angle)), axis=1)
        polygons = [
            [((box[:2] + box[2:]) / 2 + (box[2:] - box[:2]) / 2 * circle).reshape(-1)]
            for box in boxes.numpy()
        ]
        sample.gt_instances = InstanceData(
            bboxes=boxes,
            labels=torch.arange(OBJECTS) % num_classes,
            masks=PolygonMasks(polygons, side, side),
        )
    image = torch.randint(0, 256, (3, *shape), dtype=torch.uint8)
    return dict(inputs=[image], data_samples=[sample])


def give_proposals(model, method: str, side: int) -> None:
    """Let the RPN's proposals, however they came out, be known ones."""
    inner = getattr(model.rpn_head, method)
    proposals = make_proposals(make_objects(side), side)

    def known(*args, **kwargs):
        from mmengine.structures import InstanceData

        found = inner(*args, **kwargs)
        boxes = proposals.to(next(model.parameters()).device)
        scores = boxes.new_zeros(len(boxes))
        results = [InstanceData(bboxes=boxes, scores=scores, labels=scores.long())]
        return (found[0], results) if isinstance(found, tuple) else results

    setattr(model.rpn_head, method, known)


def give_scores(roi_head, per_box: int, floor: float, least: float) -> None:
    """Let some classes of each box score, evenly from ``least`` on, and the others ``floor``."""
    import torch

    inner = roi_head._class_probs

    @functools.cache  # drawn in a step that does not count
    def draw(boxes, columns, device):
        generator = torch.Generator().manual_seed(2)
        classes = torch.rand(boxes, columns - 1, generator=generator).topk(per_box).indices
        scores = torch.rand(boxes, per_box, generator=generator)
        return classes.to(device), (least + (1 - least) * scores / per_box).to(device)

    def known(stage, cls_score):
        probs = torch.full_like(inner(stage, cls_score), floor)
        return probs.scatter_(1, *draw(*probs.shape, probs.device))

    roi_head._class_probs = known


def give_masks(roi_head) -> None:
    """Let every mask be a disc with a rough edge."""
    import torch

    inner = roi_head._class_mask_logits

    def known(x, rois, labels):
        logits = inner(x, rois, labels)
        axis = torch.linspace(-1, 1, logits.shape[-1], device=logits.device)
        noise = torch.sin(1e3 * axis)
        disc = 4 - 6 * (axis[:, None] ** 2 + axis**2) + 0.5 * noise[:, None] * noise
        return disc.expand_as(logits)

    roi_head._class_mask_logits = known
