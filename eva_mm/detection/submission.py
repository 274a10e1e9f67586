"""Result files for evaluation servers, whose annotations are not public."""

import torch
from mmdet.registry import METRICS

from .metrics import EVACocoMetric


@METRICS.register_module()
class COCOSubmission(EVACocoMetric):
    """Writes the file that COCO's server takes, and evaluates nothing.

    Records hold boxes *or* masks: beside a box the server would take the box's area for the
    mask's. Of each image and class the best ``max_dets`` are written; more are not counted.

    Args:
        ann_file: ``image_info_test-dev2017.json``, for the category ids.
        outfile_prefix: the file is ``<outfile_prefix>.json``; the server wants it named
            ``detections_test-dev2017_<name>_results.json``.
        metric: ``'bbox'`` or ``'segm'``.
        max_dets: COCO counts 100.
        **kwargs: see :class:`EVACocoMetric`.

    Raises:
        ValueError: not one metric.
    """

    def __init__(
        self,
        ann_file: str,
        outfile_prefix: str,
        metric: str = 'bbox',
        max_dets: int = 100,
        **kwargs,
    ) -> None:
        if not isinstance(metric, str):
            raise ValueError(f"metric should be 'bbox' or 'segm', one file each, got {metric!r}")
        super().__init__(
            ann_file=ann_file,
            metric=metric,
            max_dets=max_dets,
            format_only=True,
            outfile_prefix=outfile_prefix,
            **kwargs,
        )

    def evaluate_results_file(self, path: str) -> dict[str, float]:
        """Refuses: the annotations are the server's.

        Raises:
            ValueError: always.
        """
        raise ValueError(f'{path} cannot be evaluated here: the server has the annotations')

    def _kept(self, image_id: int, prediction: dict) -> torch.Tensor:
        """Indices of the best ``max_dets`` of each class, best first."""
        mask_scores = prediction.get('mask_scores') if self.metrics == ['segm'] else None
        scores = prediction['scores'] if mask_scores is None else mask_scores
        order = torch.as_tensor(scores).cpu().argsort(descending=True, stable=True)
        labels = prediction['labels'].cpu()[order]
        ranks = torch.zeros_like(labels)
        for label in labels.unique():
            mine = labels == label
            ranks[mine] = torch.arange(int(mine.sum()))
        return order[ranks < self.max_dets]

    def _to_records(self, prediction: dict, cat_ids: list[int]) -> list[dict]:
        records = super()._to_records(prediction, cat_ids)
        for record in records:
            mask_score = record.pop('mask_score', None)
            if self.metrics == ['bbox']:
                record.pop('segmentation', None)
                continue
            if 'segmentation' not in record:
                raise ValueError("metric 'segm' needs predicted masks, the predictions have none")
            del record['bbox']
            if mask_score is not None:
                record['score'] = mask_score
        return records
