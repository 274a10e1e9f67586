"""COCO and LVIS metrics on faster-coco-eval: the APs of pycocotools and lvis-api, sooner."""

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from mmdet.evaluation.metrics import CocoMetric
from mmdet.registry import METRICS
from mmengine.logging import MMLogger
from terminaltables import AsciiTable

from eva_mm.engine.saving import whole_file
from eva_mm.errors import InputError

from .datasets import check_lvis_fields, load_annotation_file, require_fields
from .fast_eval import (
    listed_categories,
    precision_table,
    read_results,
    summarize,
    top_detections,
    without_cycle_search,
)
from .rle import encode_masks


@METRICS.register_module()
class EVACocoMetric(CocoMetric):
    """COCO's box and mask AP, equal to pycocotools' at 100 detections per image and class.

    Reports ``coco/bbox_mAP``, ``_mAP_50``, ``_mAP_75``, ``_mAP_s``, ``_mAP_m``, ``_mAP_l`` and the
    same for ``segm``: fractions, not rounded; -1 where nothing is annotated. Mask APs by size
    use mask areas.

    Args:
        ann_file: COCO-format annotations. None: they are taken from the data samples.
        metric: ``'bbox'``, ``'segm'`` or a list of them.
        classwise: whether to report each class too (``bbox_AP/<name>``).
        max_dets: detections per image and class that count.
        iou_thrs: IoU thresholds; COCO's ten when None.
        format_only: only write the results.
        outfile_prefix: results are written to ``<outfile_prefix>.json``, one record per
            detection with box and, if predicted, mask; :meth:`evaluate_results_file` reads it.
        backend_args: of mmengine's file backend.
        collect_device: where ranks gather results, ``'cpu'`` or ``'gpu'``.
        prefix: of the names, instead of ``coco``.

    Raises:
        ValueError: an unknown metric, a cap below 1, or ``format_only`` without a file.
    """

    default_prefix = 'coco'
    lvis = False
    names = {
        'AP': 'mAP', 'AP50': 'mAP_50', 'AP75': 'mAP_75',
        'APs': 'mAP_s', 'APm': 'mAP_m', 'APl': 'mAP_l',
    }  # fmt: skip

    def __init__(
        self,
        ann_file: str | None = None,
        metric: str | list[str] = 'bbox',
        classwise: bool = False,
        max_dets: int = 100,
        iou_thrs: float | Sequence[float] | None = None,
        format_only: bool = False,
        outfile_prefix: str | None = None,
        backend_args: dict | None = None,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        metrics = [metric] if isinstance(metric, str) else list(metric)
        unknown = [name for name in metrics if name not in ('bbox', 'segm')]
        if unknown or not metrics:
            raise ValueError(
                f"metric should be 'bbox', 'segm' or both, got {metric!r} (for proposals use "
                f"mmdet's CocoMetric)"
            )
        if max_dets < 1:
            raise ValueError(f'max_dets should be at least 1, got {max_dets}')
        if format_only and outfile_prefix is None:
            raise ValueError('format_only writes results: outfile_prefix is needed')
        super().__init__(
            metric=metrics,
            classwise=classwise,
            iou_thrs=None if iou_thrs is None else np.atleast_1d(iou_thrs),
            format_only=format_only,
            outfile_prefix=outfile_prefix,
            backend_args=backend_args,
            collect_device=collect_device,
            prefix=prefix,
        )
        self.max_dets = max_dets
        self.ann_file = ann_file
        self.data = None if ann_file is None else self._load(ann_file)
        # What the parent's `process` looks at: None asks it to keep the samples' instances.
        self._coco_api = self.data

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keeps what of the predictions may count, masks as RLE.

        What is left out here is neither encoded nor gathered from other processes.

        Args:
            data_batch: not used.
            data_samples: per image ``img_id``, ``ori_shape`` and ``pred_instances`` with
                ``bboxes`` (n, 4), ``scores`` (n,), ``labels`` (n,) and perhaps ``masks`` ((n, H, W)
                bool or RLEs) and ``mask_scores`` (n,).
        """
        slim = []
        for sample in data_samples:
            prediction = sample['pred_instances']
            kept = self._kept(sample['img_id'], prediction)
            if kept is not None:
                prediction = {key: _take(value, kept) for key, value in prediction.items()}
            if 'masks' in prediction:
                prediction = dict(prediction, masks=_as_rle(prediction['masks']))
            slim.append(dict(sample, pred_instances=prediction))
        super().process(data_batch, slim)

    def _kept(self, image_id: int, prediction: dict) -> torch.Tensor | None:
        """Indices of the detections that :meth:`_counter` would pass; None keeps all."""
        return None

    @without_cycle_search()
    def compute_metrics(self, results: list) -> dict[str, float]:
        """Evaluates what :meth:`process` gathered: pairs (ground truth, predictions) of images.

        Returns:
            Names without prefix, and values.
        """
        truths, predictions = zip(*results) if results else ((), ())
        data = self.data or self._data_of_samples(truths)
        cat_ids = self._category_ids(data)
        images = (self._to_records(prediction, cat_ids) for prediction in predictions)
        if self.outfile_prefix is not None:
            images = self._written(images, f'{self.outfile_prefix}.json')
        if self.format_only:
            for _ in images:  # writes as it goes
                pass
            return {}
        return self._evaluate(images, data, cat_ids, self.metrics)

    @without_cycle_search()
    def evaluate_results_file(self, path: str) -> dict[str, float]:
        """Evaluates detections saved in COCO's results format, without a model.

        A metric whose geometry (boxes or masks) the file lacks is left out with a warning.

        Args:
            path: JSON list of {image_id, category_id, score, bbox and/or segmentation}.

        Returns:
            Names with prefix, and values, as :meth:`evaluate` returns them.

        Raises:
            FileNotFoundError, ValueError: see :func:`fast_eval.read_results`; also when the
                metric has no ``ann_file``, or the file serves none of its metrics.
        """
        if self.data is None:
            raise ValueError(f'{type(self).__name__} needs ann_file to evaluate {path}')
        images = list(read_results(path, self.data))
        first = images[0][0] if images else {'bbox': None, 'segmentation': None}
        served = {'bbox': 'bbox' in first, 'segm': 'segmentation' in first}
        metrics = [name for name in self.metrics if served[name]]
        for name in self.metrics:
            if not served[name]:
                self._logger.warning(f'{path} holds nothing to evaluate {name} with: left out')
        if not metrics:
            raise ValueError(
                f'results file {path} holds {sorted(first)}, nothing to evaluate {self.metrics}'
            )
        values = self._evaluate(iter(images), self.data, self._category_ids(self.data), metrics)
        return {f'{self.prefix}/{key}': value for key, value in values.items()}

    @property
    def _logger(self) -> MMLogger:
        return MMLogger.get_current_instance()

    def _load(self, ann_file: str) -> dict:
        data = load_annotation_file(ann_file, self.backend_args)
        if not data['categories']:
            raise InputError(f'{ann_file} lists no categories')
        require_fields(data['annotations'], 'annotations', ('area', 'bbox'), ann_file)
        if 'segm' in self.metrics:
            for entry in data['annotations']:
                if not entry.get('segmentation'):
                    raise InputError(
                        f'annotation file {ann_file}: annotation id={entry["id"]} has no mask, '
                        "which metric 'segm' needs"
                    )
        return data

    def _data_of_samples(self, truths: Iterable[dict]) -> dict:
        """Ground truth in COCO's format from the data samples (mmdet's conversion)."""
        with tempfile.TemporaryDirectory() as folder:
            path = self.gt_to_coco_json(list(truths), os.path.join(folder, 'samples'))
            return load_annotation_file(path)

    def _category_ids(self, data: dict) -> list[int]:
        """Category id per label: ascending ids, of the data set's classes when known."""
        names = {entry['id']: entry['name'] for entry in data['categories']}
        classes = (self.dataset_meta or {}).get('classes')
        if classes is None:
            return sorted(names)
        missing = sorted(set(classes) - set(names.values()))
        if missing:
            raise ValueError(
                f'{self.ann_file} has no category named {missing[:5]} '
                f'({len(missing)} of {len(classes)} classes of the data set)'
            )
        return sorted(i for i, name in names.items() if name in set(classes))

    @staticmethod
    def _to_records(prediction: dict, cat_ids: list[int]) -> list[dict]:
        """Detections of one image in COCO's results format."""
        scores, boxes = prediction['scores'].tolist(), prediction['bboxes'].tolist()
        records = [
            dict(
                image_id=prediction['img_id'],
                category_id=cat_ids[label],
                score=score,
                bbox=[x1, y1, x2 - x1, y2 - y1],
            )
            for label, score, (x1, y1, x2, y2) in zip(prediction['labels'], scores, boxes)
        ]
        for record, mask in zip(records, prediction.get('masks', ())):
            counts = mask['counts']
            text = counts.decode() if isinstance(counts, bytes) else counts
            record['segmentation'] = dict(size=[int(side) for side in mask['size']], counts=text)
        for record, score in zip(records, prediction.get('mask_scores', ())):
            record['mask_score'] = float(score)
        return records

    def _written(self, images: Iterable[list[dict]], path: str) -> Iterator[list[dict]]:
        """Passes detections on and writes them to ``path``, record by record."""
        with whole_file(path) as file:
            separator = '['
            for records in images:
                for record in records:
                    file.write((separator + json.dumps(record)).encode())
                    separator = ',\n'
                yield records
            file.write(b']' if separator != '[' else b'[]')
        self._logger.info(f'results are written to {path}')

    def _counter(self, data: dict) -> Callable[[list[dict]], list[dict]]:
        """What of an image's detections may count."""
        return lambda records: records

    def _evaluate(
        self, images: Iterator[list[dict]], data: dict, cat_ids: list[int], metrics: list[str]
    ) -> dict[str, float]:
        by_metric = self._detections(images, data, metrics)
        values, rows = {}, {}
        for metric, detections in by_metric.items():
            table = precision_table(
                data, detections, metric, cat_ids, self.max_dets, self.iou_thrs, self.lvis
            )
            rows[metric] = summarize(table, self.iou_thrs, self._frequencies(data, cat_ids))
            for key, value in rows[metric].items():
                values[f'{metric}_{self.names.get(key, key)}'] = value
            if self.classwise:
                values.update(self._classwise(metric, table, data, cat_ids))
        self._print(rows)
        return values

    def _detections(
        self, images: Iterator[list[dict]], data: dict, metrics: list[str]
    ) -> dict[str, list[dict]]:
        """Detections that may count, per metric."""
        counted = self._counter(data)
        detections = {metric: [] for metric in metrics}
        for records in images:
            for metric in metrics:
                mine = _by_mask(records) if metric == 'segm' else records
                detections[metric] += counted(mine)
        return detections

    def _frequencies(self, data: dict, cat_ids: list[int]) -> list[str]:
        return []

    def _classwise(self, metric: str, table: np.ndarray, data: dict, cat_ids: list[int]) -> dict:
        names = {entry['id']: entry['name'] for entry in data['categories']}
        values, rows = {}, [['class', 'AP', 'AP50', 'AP75', 'APs', 'APm', 'APl']]
        for index, category_id in enumerate(cat_ids):
            means = summarize(table[:, :, index : index + 1], self.iou_thrs)
            values[f'{metric}_AP/{names[category_id]}'] = means['AP']
            rows.append([names[category_id], *(_percent(value) for value in means.values())])
        self._logger.info(f'{metric} per class\n{AsciiTable(rows).table}')
        return values

    def _print(self, rows: dict[str, dict[str, float]]) -> None:
        table = [['', *next(iter(rows.values()))]]
        table += [
            [name, *(_percent(value) for value in row.values())] for name, row in rows.items()
        ]
        self._logger.info(f'{self.prefix}, percent\n{AsciiTable(table).table}')


@METRICS.register_module()
class EVALVISMetric(EVACocoMetric):
    """LVIS's box and mask AP, equal to lvis-api's.

    Reports ``lvis/bbox_AP``, ``AP50``, ``AP75``, ``APs``, ``APm``, ``APl``, ``APr``, ``APc``,
    ``APf`` and the same for ``segm``: fractions, not rounded; -1 where nothing is annotated.
    Arguments are those of :class:`EVACocoMetric`, but:

    Args:
        ann_file: LVIS annotations, v1 or v0.5; needed, as they tell what is known of an image.
        max_dets: detections per image over all classes that count: 300 is LVIS's rule, the
            published EVA result uses 1000 (EVA-01/det/README.md).
    """

    default_prefix = 'lvis'
    lvis = True
    names: dict[str, str] = {}

    def __init__(self, ann_file: str, max_dets: int = 300, **kwargs) -> None:
        super().__init__(ann_file=ann_file, max_dets=max_dets, **kwargs)
        # Of the data set's classes, which are known once the first image comes.
        self._cat_ids: list[int] = []
        self._listed: dict[int, set[int]] | None = None

    def _load(self, ann_file: str) -> dict:
        data = super()._load(ann_file)
        check_lvis_fields(data, ann_file)
        return data

    def _counter(self, data: dict) -> Callable[[list[dict]], list[dict]]:
        # Unlisted categories are dropped after the cap (lvis-api's order), not before; doing it
        # here keeps 20,000 images times 1000 detections from piling up in the evaluator.
        listed = listed_categories(data)
        return lambda records: [
            record
            for record in top_detections(records, self.max_dets)
            if record['category_id'] in listed[record['image_id']]
        ]

    def _kept(self, image_id: int, prediction: dict) -> torch.Tensor | None:
        # A results file holds all. Masks with scores of their own have a best N of their own.
        if self.outfile_prefix is not None or 'mask_scores' in prediction:
            return None
        if self._listed is None:
            self._cat_ids = self._category_ids(self.data)
            self._listed = listed_categories(self.data)
        order = torch.arange(len(prediction['scores']))
        if len(order) > self.max_dets:
            scores = prediction['scores'].cpu()
            order = scores.argsort(descending=True, stable=True)[: self.max_dets]
        listed = self._listed[image_id]
        labels = prediction['labels'].cpu()[order].tolist()
        known = [self._cat_ids[label] in listed for label in labels]
        return order[torch.tensor(known, dtype=torch.bool)]

    def _frequencies(self, data: dict, cat_ids: list[int]) -> list[str]:
        frequency = {entry['id']: entry['frequency'] for entry in data['categories']}
        return [frequency[category_id] for category_id in cat_ids]


def _by_mask(records: list[dict]) -> list[dict]:
    """The detections with the scores of their masks, where a head gives masks their own."""
    if any('segmentation' not in record for record in records):
        raise ValueError("metric 'segm' needs predicted masks, the predictions have none")
    if not any('mask_score' in record for record in records):
        return records
    return [dict(record, score=record.get('mask_score', record['score'])) for record in records]


def _take(value: torch.Tensor | Sequence, indices: torch.Tensor) -> torch.Tensor | list:
    if isinstance(value, torch.Tensor):
        return value[indices.to(value.device)]
    return [value[index] for index in indices.tolist()]


def _as_rle(masks: torch.Tensor | Sequence[dict]) -> list[dict]:
    """Masks of an image as RLE, ``counts`` as text: pickled in half the time of bytes."""
    if isinstance(masks, torch.Tensor):
        return encode_masks(masks)
    return masks


def _percent(value: float) -> str:
    return '-' if value < 0 else f'{100 * value:.2f}'
