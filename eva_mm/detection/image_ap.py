"""AP of every image on its own, to find those a detector does worst and best on."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from pycocotools import mask as mask_utils

from eva_mm.errors import InputError

from .datasets import _are_numbers, check_lvis_fields, load_annotation_file, require_fields
from .fast_eval import mean_precision, precision_table, read_results

IOU_THRS = np.linspace(0.5, 0.95, 10)
ByImage = dict[int, list[dict]]


def rank_images(
    annotations: str, results: str, iou_type: str = 'bbox', max_dets: int | None = None
) -> list[tuple[int, float]]:
    """Image ids with their AP, worst first.

    An image's AP is COCO's mean over thresholds and over the categories annotated in it, by
    LVIS's rules where the file is LVIS's. Images without such categories have none and are left
    out, and so are those whose objects are all ignored or have no area.

    Args:
        annotations: COCO or LVIS annotation file.
        results: JSON list in COCO's results format.
        iou_type: ``bbox`` or ``segm``.
        max_dets: Detections per image and category that count; by default LVIS's 300 or COCO's
            100.

    Raises:
        InputError: A file is missing or wrong, or one of the two lacks what ``iou_type`` compares.
    """
    geometry = 'bbox' if iou_type == 'bbox' else 'segmentation'
    data, truth, found = read_both(annotations, results, geometry)
    if _is_lvis(data):
        require_fields(data['annotations'], 'annotations', ('area',), annotations)
    if max_dets is None:
        max_dets = 300 if _is_lvis(data) else 100
    ranked = []
    for image in data['images']:
        part = dict(data, images=[image], annotations=truth[image['id']])
        try:
            value = _mean_ap(part, found[image['id']], iou_type, max_dets)
        except (RuntimeError, ValueError) as error:  # of run lengths that are none
            raise InputError(f'results file {results}: image {image["id"]}: {error}') from error
        ranked.append((image['id'], value))
    ranked = [pair for pair in ranked if pair[1] >= 0]
    if not ranked:
        raise InputError(f'annotation file {annotations}: no image has an object that counts')
    return sorted(ranked, key=lambda pair: pair[1])


def _mean_ap(data: dict, detections: list[dict], iou_type: str, max_dets: int) -> float:
    """Over the categories that are annotated in ``data``; -1 if nothing counts."""
    cat_ids = sorted({e['category_id'] for e in data['annotations'] if not e.get('iscrowd')})
    if not cat_ids:
        return -1.0
    chosen = [record for record in detections if record['category_id'] in cat_ids]
    table = precision_table(data, chosen, iou_type, cat_ids, max_dets, IOU_THRS, _is_lvis(data))
    return mean_precision(table[..., 0])


def read_both(annotations: str, results: str, geometry: str) -> tuple[dict, ByImage, ByImage]:
    """Read an annotation file and saved results, and make sure that they can be compared.

    Args:
        annotations: COCO or LVIS annotation file.
        results: JSON list in COCO's results format.
        geometry: ``bbox`` or ``segmentation``, what is compared.

    Returns:
        The parsed annotation file; its annotations and the results, both by image id.

    Raises:
        InputError: A file is missing or wrong, or an entry lacks ``geometry``; names file and id.
    """
    data = load_annotation_file(annotations)
    if _is_lvis(data):
        check_lvis_fields(data, annotations)
    require_fields(data['annotations'], 'annotations', (geometry,), annotations)
    _check_annotations(data, annotations, geometry)
    truth, found = defaultdict(list), defaultdict(list)
    for entry in data['annotations']:
        truth[entry['image_id']].append(entry)
    try:
        for records in read_results(results, data):
            found[records[0]['image_id']] += records
    except (FileNotFoundError, ValueError) as error:
        raise InputError(str(error)) from error
    if any(geometry not in record for records in found.values() for record in records):
        raise InputError(f'results file {results}: expected a {geometry} in every record')
    return data, truth, found


def _is_lvis(data: dict) -> bool:
    return any('neg_category_ids' in image for image in data['images'])


def _check_annotations(data: dict, path: str, geometry: str) -> None:
    sizes = {image['id']: [image['height'], image['width']] for image in data['images']}
    known = {entry['id'] for entry in data['categories']}
    for entry in data['annotations']:
        if entry['category_id'] not in known:
            wrong = f'category {entry["category_id"]} is not listed under categories'
        elif entry['image_id'] not in sizes:
            wrong = f'image {entry["image_id"]} is not listed under images'
        else:
            wrong = _wrong_geometry(entry[geometry], geometry, sizes[entry['image_id']])
        if wrong:
            raise InputError(f'annotation file {path}: annotation id={entry["id"]}: {wrong}')


def _wrong_geometry(value: object, geometry: str, size: list[int]) -> str | None:
    """What is wrong with a box or a mask; the evaluator crashes on such masks, or never ends."""
    if geometry == 'bbox':
        good = isinstance(value, list) and len(value) == 4 and _are_numbers(value)
        return None if good else f'bbox should be [x, y, width, height], found {str(value):.40}'
    try:
        if isinstance(value, list):
            good = bool(value) and all(len(part) >= 4 and _are_numbers(part) for part in value)
        else:
            good = list(value['size']) == size and _covers(value)
    except Exception:  # pycocotools raises anything
        good = False
    if good:
        return None
    return f'segmentation should be polygons or run lengths of {size}, found {str(value):.40}'


def _covers(mask: dict) -> bool:
    """Whether run lengths have as many pixels as they tell."""
    if isinstance(mask['counts'], list):
        return min(mask['counts']) >= 0 and sum(mask['counts']) == np.prod(mask['size'])
    # What too short run lengths leave open is whatever lay in memory.
    return mask_utils.decode(mask).sum() == mask_utils.area(mask)
