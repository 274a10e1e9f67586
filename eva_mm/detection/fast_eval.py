"""AP of COCO and LVIS on faster-coco-eval, equal to pycocotools and lvis-api.

Detections are plain dicts as in COCO's results format: ``image_id``, ``category_id``, ``score``,
``bbox`` (x, y, width, height in pixels of the original image) and/or ``segmentation`` (RLE).
LVIS rules (Gupta et al., arXiv 1908.03195): the best N detections of an image over all classes
count; those of a category that is neither annotated nor listed as absent in the image are left
out; unmatched ones of a not exhaustively annotated category are ignored.
"""

import contextlib
import gc
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from pycocotools import mask as mask_utils

AREAS = ('all', 'small', 'medium', 'large')
FREQUENCIES = ('r', 'c', 'f')
# faster-coco-eval keeps Python objects per (image, category), also empty ones: 24 million for
# LVIS val. Categories are independent, so a few are evaluated at a time, on their images only
# (4,000 images, 1203 categories, 240,000 detections: twice as fast, 0.1 instead of 2 GB).
CATEGORIES_AT_ONCE = 20


class _LVISEval(COCOeval_faster):
    """LVIS-style evaluation that ignores what lvis-api ignores.

    faster-coco-eval derives the ignore flag from ``iscrowd``; lvis-api knows no crowds and
    takes the annotation's ``ignore``.
    """

    def _prepare(self) -> None:
        super()._prepare()
        for annotation in self.cocoGt.anns.values():
            annotation['ignore'] = annotation['lvis_ignore']


@contextlib.contextmanager
def without_cycle_search() -> Iterator[None]:
    """Switch Python's search for reference cycles off.

    Millions of records are made, none in a cycle; searching them over and over takes a third to
    a half of the time of an evaluation.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def top_detections(detections: list[dict], limit: int) -> list[dict]:
    """The ``limit`` best of one image over all classes; of equal scores the earlier stay."""
    if len(detections) <= limit:
        return detections
    return sorted(detections, key=lambda detection: detection['score'], reverse=True)[:limit]


def listed_categories(data: dict) -> dict[int, set[int]]:
    """Per image id of an LVIS file, the categories annotated in it or known to be absent."""
    listed = {image['id']: set(image['neg_category_ids']) for image in data['images']}
    for annotation in data['annotations']:
        if annotation['area'] > 0:
            listed[annotation['image_id']].add(annotation['category_id'])
    return listed


def detection_areas(detections: list[dict], iou_type: str) -> list[float]:
    """Pixels of the boxes (``bbox``) or of the masks (``segm``)."""
    if iou_type == 'bbox':
        return [detection['bbox'][2] * detection['bbox'][3] for detection in detections]
    # One by one: for a list, pycocotools 2.0.11 puts areas into bytes and fails above 255.
    return [float(mask_utils.area(detection['segmentation'])) for detection in detections]


def precision_table(
    data: dict,
    detections: list[dict],
    iou_type: str,
    cat_ids: Sequence[int],
    max_dets: int,
    iou_thrs: np.ndarray,
    lvis: bool = False,
) -> np.ndarray:
    """Interpolated precision of every class.

    Args:
        data: annotation file as parsed; not modified.
        detections: of all images; for LVIS already cut to the best per image.
        iou_type: ``bbox`` or ``segm``. With ``segm`` sizes are mask areas, never box areas.
        cat_ids: categories, in the order of the result.
        max_dets: detections per image and class that count.
        iou_thrs: T IoU thresholds.
        lvis: whether LVIS's rules hold.

    Returns:
        Array (T, 101 recalls, classes, 4 areas of :data:`AREAS`); -1 where nothing is annotated.
    """
    numbers = _image_numbers(data['images'])
    truth, found = defaultdict(list), defaultdict(list)
    for annotation in data['annotations']:
        if annotation['image_id'] in numbers and (not lvis or annotation['area'] > 0):
            truth[annotation['category_id']].append(annotation)
    for detection in detections:
        found[detection['category_id']].append(detection)
    tables = []
    for start in range(0, len(cat_ids), CATEGORIES_AT_ONCE):
        ids = list(cat_ids[start : start + CATEGORIES_AT_ONCE])
        chosen = set(ids)
        # The evaluator takes an annotation of id 0 for one that nothing matched.
        annotations = [
            _truth(entry, number, numbers, lvis)
            for number, entry in enumerate((e for i in ids for e in truth[i]), start=1)
        ]
        results = _results([entry for i in ids for entry in found[i]], numbers, iou_type, lvis)
        used = {entry['image_id'] for entry in (*annotations, *results)}
        part = dict(
            images=[
                dict(image, id=numbers[image['id']])
                for image in data['images']
                if numbers[image['id']] in used
            ],
            categories=[entry for entry in data['categories'] if entry['id'] in chosen],
            annotations=annotations,
        )
        tables.append(_evaluate(part, results, iou_type, ids, max_dets, iou_thrs, lvis))
    return np.concatenate(tables, axis=2)


def _image_numbers(images: list[dict]) -> dict[Any, int]:
    """Image id -> number: the evaluator takes numbers only, and ids may be texts.

    In the order of the ids, by which detections of equal score are ranked.
    """
    ids = [image['id'] for image in images]
    if all(isinstance(i, int) for i in ids):
        return {i: i for i in ids}
    return {i: number for number, i in enumerate(sorted(ids, key=str), start=1)}


def _truth(annotation: dict, number: int, numbers: dict[Any, int], lvis: bool) -> dict:
    """A copy that the evaluator may write into."""
    copy = dict(annotation, id=number, image_id=numbers[annotation['image_id']])
    if lvis:
        copy.update(iscrowd=0, lvis_ignore=int(annotation.get('ignore', 0)))
    return copy


def _results(
    detections: list[dict], numbers: dict[Any, int], iou_type: str, lvis: bool
) -> list[dict]:
    """Annotations such as ``COCO.loadRes`` makes of detections, without what is not needed.

    It also draws a polygon around each box, or a box around each mask, and measures each mask by
    itself. lvis-api leaves out detections without an area.
    """
    geometry = 'bbox' if iou_type == 'bbox' else 'segmentation'
    return [
        {
            'id': number,
            'image_id': numbers[detection['image_id']],
            'category_id': detection['category_id'],
            'score': detection['score'],
            geometry: detection[geometry],
            'area': area,
            'iscrowd': 0,
        }
        for number, (detection, area) in enumerate(
            zip(detections, detection_areas(detections, iou_type)), start=1
        )
        if not lvis or area > 0
    ]


def _evaluate(part, results, iou_type, ids, max_dets, iou_thrs, lvis) -> np.ndarray:
    if not part['annotations']:
        return -np.ones((len(iou_thrs), 101, len(ids), len(AREAS)))
    evaluator = (_LVISEval if lvis else COCOeval_faster)(
        COCO(part),
        COCO(dict(part, annotations=results)),
        iou_type,
        lvis_style=lvis,
        print_function=lambda *_: None,
    )
    evaluator.params.catIds = sorted(ids)
    evaluator.params.maxDets = [max_dets]
    evaluator.params.iouThrs = np.asarray(iou_thrs)
    evaluator.evaluate()
    evaluator.accumulate()
    order = np.searchsorted(evaluator.params.catIds, ids)
    return np.asarray(evaluator.eval['precision'])[..., 0][:, :, order]


def mean_precision(table: np.ndarray) -> float:
    """Mean over what is annotated; -1 when nothing is (pycocotools' convention)."""
    valid = table[table > -1]
    return float(valid.mean()) if valid.size else -1.0


def summarize(table: np.ndarray, iou_thrs: np.ndarray, frequencies: Sequence[str] = ()) -> dict:
    """Names the means of a precision table.

    Args:
        table: (T, R, K, A) of :func:`precision_table`.
        iou_thrs: T thresholds; AP50 and AP75 are -1 when 0.5, 0.75 are not among them.
        frequencies: LVIS's r, c or f per class.

    Returns:
        AP, AP50, AP75, APs, APm, APl and, with frequencies, APr, APc, APf, each in [0, 1] or -1.
    """
    values = {'AP': mean_precision(table[..., 0])}
    for percent in (50, 75):
        values[f'AP{percent}'] = mean_precision(table[np.isclose(iou_thrs, percent / 100), ..., 0])
    for index, area in enumerate(AREAS[1:], start=1):
        values[f'AP{area[0]}'] = mean_precision(table[..., index])
    if len(frequencies):
        for name in FREQUENCIES:
            chosen = [index for index, value in enumerate(frequencies) if value == name]
            values[f'AP{name}'] = mean_precision(table[:, :, chosen, 0])
    return values


def read_results(path: str, data: dict) -> Iterator[list[dict]]:
    """Reads detections saved in COCO's results format and checks them against the ground truth.

    Args:
        path: JSON list of detections, e.g. ``PREFIX.json`` of the metrics here or
            ``PREFIX.segm.json`` of mmdet's.
        data: the annotation file that they belong to, as parsed.

    Returns:
        The detections image by image.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such list, a record lacks a key, or names an image or category that
            the annotations lack.
    """
    try:
        with open(path, encoding='utf-8') as file:
            records = json.load(file)
    except FileNotFoundError as error:
        raise FileNotFoundError(f'results file not found: {path}') from error
    except json.JSONDecodeError as error:
        raise ValueError(f'results file is not valid JSON: {path}: {error}') from error
    if not isinstance(records, list):
        raise ValueError(
            f'results file {path}: expected a list of detections, found a {type(records).__name__}'
        )
    for index, record in enumerate(records):
        _check_record(record, path, index)
    _check_known(path, 'image_id', records, {image['id'] for image in data['images']})
    _check_known(path, 'category_id', records, {entry['id'] for entry in data['categories']})
    _check_geometry(path, records, data)
    by_image = defaultdict(list)
    for record in records:
        by_image[record['image_id']].append(record)
    return iter(by_image.values())


def _check_record(record: object, path: str, index: int) -> None:
    if not isinstance(record, dict):
        raise ValueError(f'{path}, record {index}: expected an object, found {record!r:.60}')
    if not (
        'image_id' in record
        and 'category_id' in record
        and 'score' in record
        and ('bbox' in record or 'segmentation' in record)
    ):
        raise ValueError(
            f'{path}, record {index}: expected image_id, category_id, score and bbox or '
            f'segmentation, found {sorted(record)}'
        )
    score = record['score']
    if not isinstance(score, int | float) or not math.isfinite(score):
        raise ValueError(f'{path}, record {index}: score must be a finite number, found {score!r}')
    if 'bbox' in record and len(record['bbox']) != 4:
        raise ValueError(
            f'{path}, record {index}: bbox must be [x, y, width, height], found {record["bbox"]}'
        )


def _check_known(path: str, key: str, records: Iterable[dict], known: set) -> None:
    unknown = sorted({record[key] for record in records} - known, key=str)
    if unknown:
        raise ValueError(
            f'results file {path}: {len(unknown)} {key} not in the annotations: '
            f'{unknown[:5]}{" ..." if len(unknown) > 5 else ""} '
            f'(the annotations have {len(known)}; other split or data set?)'
        )


def _check_geometry(path: str, records: list[dict], data: dict) -> None:
    """Boxes or masks are in every record or in none; masks are RLE of their image's size."""
    for key in ('bbox', 'segmentation'):
        has = [key in record for record in records]
        if any(has) and not all(has):
            raise ValueError(
                f'results file {path}: record {has.index(False)} has no {key}, others have'
            )
    if not any(has):  # of the masks
        return
    sizes = {image['id']: [image['height'], image['width']] for image in data['images']}
    for index, record in enumerate(records):
        rle = record['segmentation']
        if not isinstance(rle, dict) or not {'size', 'counts'} <= rle.keys():
            raise ValueError(
                f'{path}, record {index}: segmentation must be RLE with size and counts'
            )
        size = sizes[record['image_id']]
        if list(rle['size']) != size:
            raise ValueError(
                f'{path}, record {index}: mask is {list(rle["size"])} (height, width), '
                f'image {record["image_id"]} is {size}'
            )
        counts = rle['counts']
        if isinstance(counts, list):
            if not all(isinstance(n, int) and n >= 0 for n in counts) or sum(counts) != math.prod(
                size
            ):
                raise ValueError(
                    f'{path}, record {index}: run lengths should sum to {math.prod(size)} pixels'
                )
            record['segmentation'] = mask_utils.frPyObjects(rle, *size)
        elif not isinstance(counts, str | bytes):
            raise ValueError(f'{path}, record {index}: run lengths cannot be {counts!r}')
