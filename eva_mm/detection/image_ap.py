"""AP of every image on its own, to find those a detector does worst and best on."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from eva_mm.errors import InputError

from .datasets import check_lvis_fields, load_annotation_file
from .fast_eval import mean_precision, precision_table, read_results

IOU_THRS = np.linspace(0.5, 0.95, 10)


def rank_images(
    annotations: str, results: str, iou_type: str = 'bbox', max_dets: int | None = None
) -> list[tuple[int, float]]:
    """Image ids with their AP, worst first.

    An image's AP is COCO's mean over thresholds and over the categories annotated in it, by
    LVIS's rules where the file is LVIS's. Images without such categories have none and are left
    out.

    Args:
        annotations: COCO or LVIS annotation file.
        results: JSON list in COCO's results format.
        iou_type: ``bbox`` or ``segm``.
        max_dets: Detections per image and category that count; by default LVIS's 300 or COCO's
            100.

    Raises:
        InputError: A file is missing or wrong, or the results lack what ``iou_type`` compares.
    """
    data = load_annotation_file(annotations)
    is_lvis = any('neg_category_ids' in image for image in data['images'])
    if is_lvis:
        check_lvis_fields(data, annotations)
    if max_dets is None:
        max_dets = 300 if is_lvis else 100
    geometry = 'bbox' if iou_type == 'bbox' else 'segmentation'
    try:
        images = list(read_results(results, data))
    except (FileNotFoundError, ValueError) as error:
        raise InputError(str(error)) from error
    if any(geometry not in record for records in images for record in records):
        raise InputError(f'results file {results}: expected a {geometry} in every record')
    found = {records[0]['image_id']: records for records in images}
    truth = defaultdict(list)
    for entry in data['annotations']:
        truth[entry['image_id']].append(entry)
    categories = {entry['id']: entry for entry in data['categories']}
    ranked = []
    for image in data['images']:
        annotated = truth[image['id']]
        cat_ids = sorted({e['category_id'] for e in annotated if not e.get('iscrowd')})
        if not cat_ids:
            continue
        part = dict(
            images=[image],
            annotations=annotated,
            categories=[categories[category_id] for category_id in cat_ids],
        )
        detections = [r for r in found.get(image['id'], ()) if r['category_id'] in cat_ids]
        table = precision_table(
            part, detections, iou_type, cat_ids, max_dets, IOU_THRS, 'neg_category_ids' in image
        )
        ranked.append((image['id'], mean_precision(table[..., 0])))
    return sorted(ranked, key=lambda pair: pair[1])
