"""From saved detections to AP, and from a model's output to records: ours beside the others.

Data are generated: images of 640 x 480 px, objects and detections are ellipses of 8 to 300 px.
Each evaluator runs in a process of its own on the same files, reading them included.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import (
    MIB,
    Table,
    benchmark,
    peak_rss,
    read_names,
    read_numbers,
    reset_peak_rss,
    rss,
)

WIDTH, HEIGHT = 640, 480
LVIS_CATEGORIES, COCO_CATEGORIES = 1203, 80
OBJECTS_PER_IMAGE = 12  # LVIS val has 12.4
ATTRIBUTES = ('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl')
PACKAGES = ('faster-coco-eval', 'pycocotools', 'lvis', 'numpy')


# ------------------------------------------------------------------------------------------- data


def _ellipse(box, phase: float) -> list[float]:
    """Polygon of 16 corners inside a box (x, y, w, h)."""
    x, y, w, h = box
    angles = [phase + 2 * math.pi * i / 16 for i in range(16)]
    corners = [
        (x + w / 2 * (1 + math.cos(angle)), y + h / 2 * (1 + math.sin(angle))) for angle in angles
    ]
    return [round(value, 2) for corner in corners for value in corner]


def _any_box(rng) -> list[float]:
    """Log-uniform sides, anywhere in the image: (x, y, w, h)."""
    w, h = (2 ** rng.uniform(3, 8.2, 2)).tolist()
    w, h = min(w, WIDTH - 1), min(h, HEIGHT - 1)
    return [rng.uniform(0, WIDTH - w), rng.uniform(0, HEIGHT - h), w, h]


def make_ground_truth(num_images: int, num_categories: int, seed: int = 0) -> dict:
    """Annotations in LVIS's format, which are in COCO's too."""
    import numpy as np
    from pycocotools import mask as mask_utils

    rng = np.random.default_rng(seed)
    # Few categories are in most images, as in both data sets.
    weights = 1 / np.arange(2, num_categories + 2)
    weights /= weights.sum()
    images, annotations = [], []
    for image_id in range(1, num_images + 1):
        drawn = rng.choice(num_categories, 4, replace=False, p=weights) + 1
        absent = rng.choice(num_categories, 10, replace=False) + 1
        present = set(drawn.tolist())
        images.append(
            dict(
                id=image_id,
                width=WIDTH,
                height=HEIGHT,
                file_name=f'{image_id}.jpg',
                coco_url=f'http://images.cocodataset.org/val2017/{image_id}.jpg',
                neg_category_ids=[int(i) for i in absent if i not in present],
                not_exhaustive_category_ids=[int(drawn[0])] if image_id % 4 == 0 else [],
            )  # fmt: skip
        )
        for _ in range(OBJECTS_PER_IMAGE):
            polygon = _ellipse(_any_box(rng), rng.uniform(0, 1))
            rle = mask_utils.frPyObjects([polygon], HEIGHT, WIDTH)[0]
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image_id,
                    iscrowd=0,
                    category_id=int(rng.choice(drawn)),
                    segmentation=[polygon],
                    area=float(mask_utils.area(rle)),
                    bbox=mask_utils.toBbox(rle).tolist(),
                )  # fmt: skip
            )
    used = {annotation['category_id'] for annotation in annotations}
    listed = sorted(used | {i for image in images for i in image['neg_category_ids']})
    categories = [
        dict(id=i, name=f'c{i}', frequency='rcf'[i % 3], image_count=1)
        for i in range(1, num_categories + 1)
    ]
    return dict(images=images, annotations=annotations, categories=categories, listed=listed)


def make_detections(data: dict, per_image: int, seed: int = 1):
    """Yields (box record, mask record): true ones shifted by some per cent, false ones anywhere.

    Half of the false ones are of categories that the image lists, the rest of any.
    """
    import numpy as np
    from pycocotools import mask as mask_utils

    rng = np.random.default_rng(seed)
    truths: dict[int, list] = {image['id']: [] for image in data['images']}
    for annotation in data['annotations']:
        truths[annotation['image_id']].append(annotation)
    for image in data['images']:
        mine = truths[image['id']]
        listed = [*image['neg_category_ids'], *(truth['category_id'] for truth in mine)]
        for index in range(per_image):
            if index < 4 * len(mine):
                truth = mine[index % len(mine)]
                x, y, w, h = truth['bbox']
                shift = rng.normal(0, 0.08, 4)
                box = [x + w * shift[0], y + h * shift[1], w * (1 + shift[2]), h * (1 + shift[3])]
                category, score = truth['category_id'], rng.uniform(0.2, 1)
            else:
                box, score = _any_box(rng), rng.uniform(0, 0.6)
                pool = listed if rng.random() < 0.5 else len(data['categories'])
                category = int(rng.choice(pool)) + (0 if pool is listed else 1)
            rle = mask_utils.frPyObjects([_ellipse(box, 0.3)], HEIGHT, WIDTH)[0]
            rle['counts'] = rle['counts'].decode()
            common = dict(image_id=image['id'], category_id=category, score=float(score))
            yield dict(common, bbox=[float(v) for v in box]), dict(common, segmentation=rle)


def write_files(folder: Path, num_images: int, num_categories: int, per_image: int) -> None:
    """Write truth.json, bbox.json and segm.json. Masks come without boxes, so that all three
    evaluators take the masks' areas."""
    data = make_ground_truth(num_images, num_categories)
    (folder / 'truth.json').write_text(json.dumps(data))
    boxes, masks = zip(*make_detections(data, per_image))
    (folder / 'bbox.json').write_text(json.dumps(boxes))
    (folder / 'segm.json').write_text(json.dumps(masks))


# ------------------------------------------------------------------------------------- evaluators


def _ours(kind: str):
    from mmengine.logging import MMLogger

    from eva_mm.detection.metrics import EVACocoMetric, EVALVISMetric

    MMLogger.get_instance('benchmark', log_level='ERROR')

    def evaluate(truth: str, results: str, iou_type: str, max_dets: int) -> dict:
        if kind == 'lvis':
            metric = EVALVISMetric(truth, metric=iou_type, max_dets=max_dets)
            names = {name: name for name in ATTRIBUTES}
        else:
            metric = EVACocoMetric(truth, metric=iou_type)
            names = metric.names
        values = metric.evaluate_results_file(results)
        return {name: values[f'{kind}/{iou_type}_{names[name]}'] for name in ATTRIBUTES}

    return evaluate


def _lvis_api():
    import logging

    import numpy as np

    np.float = float  # lvis 0.5.3 asks for it; numpy 1.24 removed it
    import lvis

    logging.getLogger().setLevel(logging.ERROR)

    def evaluate(truth: str, results: str, iou_type: str, max_dets: int) -> dict:
        ground_truth = lvis.LVIS(truth)
        found = lvis.LVISResults(ground_truth, results, max_dets)
        evaluator = lvis.LVISEval(ground_truth, found, iou_type)
        evaluator.run()
        return {name: evaluator.get_results()[name] for name in ATTRIBUTES}

    return evaluate


def _pycocotools():
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def evaluate(truth: str, results: str, iou_type: str, max_dets: int) -> dict:
        ground_truth = COCO(truth)
        evaluator = COCOeval(ground_truth, ground_truth.loadRes(results), iou_type)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
        return dict(zip(ATTRIBUTES, evaluator.stats[:6].tolist()))

    return evaluate


EVALUATORS = {
    'ours, LVIS': lambda: _ours('lvis'),
    'lvis-api': _lvis_api,
    'ours, COCO': lambda: _ours('coco'),
    'pycocotools': _pycocotools,
}


def measure(evaluator: str, folder: str, iou_type: str, max_dets: int) -> dict:
    """Run one evaluator in this process.

    Returns:
        ``seconds`` by the clock, ``cpu`` seconds of all threads, ``start`` and ``peak`` (bytes
        held after the imports, and at most), ``values``.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        evaluate = EVALUATORS[evaluator]()
        reset_peak_rss()
        start, began, cpu = rss(), time.perf_counter(), time.process_time()
        values = evaluate(f'{folder}/truth.json', f'{folder}/{iou_type}.json', iou_type, max_dets)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    values = {name: float(value) for name, value in values.items()}
    return dict(seconds=seconds, cpu=cpu, start=start, peak=peak_rss(), values=values)


def _in_child(*args) -> dict:
    command = [sys.executable, '-m', 'benchmarks.evaluation', *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f'{args} failed:\n{done.stderr}')
    return json.loads(done.stdout.splitlines()[-1])


def compare(folder: Path, pair: tuple[str, str], iou_type: str, max_dets: int) -> list[tuple]:
    """Rows of ours and of its reference.

    Raises:
        RuntimeError: their APs differ.
    """
    ours, reference = (_in_child(name, folder, iou_type, max_dets) for name in pair)
    worst = max(abs(ours['values'][k] - reference['values'][k]) for k in ATTRIBUTES)
    if worst > 1e-9:
        raise RuntimeError(f'{pair} differ: {ours["values"]}, {reference["values"]}')
    rows = []
    for name, found in zip(pair, (ours, reference)):
        above = found['peak'] - found['start']
        rows.append(
            (
                name,
                f'{found["seconds"]:.1f}',
                f'{found["cpu"]:.1f}',
                f'{reference["cpu"] / found["cpu"]:.1f}',
                f'{above / MIB:.0f}',
                f'{above / (reference["peak"] - reference["start"]):.2f}',
                f'{found["peak"] / MIB:.0f}',
                f'{100 * found["values"]["AP"]:.3f}',
                f'{worst:.0e}',
            )
        )
    return rows


@benchmark(
    'evaluation',
    'from saved detections to AP: ours, lvis-api and pycocotools, boxes and masks',
    images=int,
    detections=read_numbers,
    kinds=read_names,
)
def evaluation(
    images: int = 500,
    detections: tuple[int, ...] = (300, 1000),
    kinds: tuple[str, ...] = ('bbox', 'segm'),
) -> list[Table]:
    """Tables per number of detections per image."""
    pairs = {
        LVIS_CATEGORIES: ('ours, LVIS', 'lvis-api'),
        COCO_CATEGORIES: ('ours, COCO', 'pycocotools'),
    }
    rows = []
    for per_image in detections:
        for categories, pair in pairs.items():
            with tempfile.TemporaryDirectory() as folder:
                write_files(Path(folder), images, categories, per_image)
                for kind in kinds:
                    for row in compare(Path(folder), pair, kind, per_image):
                        rows.append((f'{per_image}', categories, kind, *row))
                        print(*rows[-1], sep='  ', file=sys.stderr, flush=True)
    header = (
        'detections per image', 'classes', 'type', 'evaluator', 'time, s', 'CPU time, s',
        'times as fast (CPU)', 'memory, MiB', 'of the reference', 'whole process, MiB', 'AP',
        'largest difference of APs',
    )  # fmt: skip
    notes = (
        f'{images} generated images of {WIDTH} x {HEIGHT} px with {OBJECTS_PER_IMAGE} objects each;'
        ' each evaluator in a process of its own, reading the same JSON files included.',
        'Speeds are compared in CPU time of all threads, which other work on the machine disturbs '
        'less than the clock.',
        'Memory is the peak above what the process held after its imports; ours imports PyTorch '
        'and mmdet, which a test run has loaded anyway: the whole process stands beside it.',
        'LVIS: as many detections per image count as there are; COCO: 100 per image and class.',
    )
    return [Table(header, rows, 'From saved detections to AP', notes, PACKAGES)]


# ---------------------------------------------------------------------- from the model to records


def make_mask_output(num_boxes: int, seed: int = 0):
    """What a mask head gives: disc-like probabilities (n, 28, 28) and boxes (n, 4), xyxy."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    axis = torch.linspace(-1, 1, 28)
    distance = axis[:, None] ** 2 + axis[None] ** 2
    noise = 0.1 * torch.randn(num_boxes, 28, 28, generator=generator)
    sides = 2 ** (3 + 5.2 * torch.rand(num_boxes, 2, generator=generator))
    limits = torch.tensor([WIDTH, HEIGHT])
    sides = sides.minimum(limits - 1.0)
    corners = torch.rand(num_boxes, 2, generator=generator) * (limits - sides)
    return (1.2 - distance + noise).clamp(0, 1), torch.cat((corners, corners + sides), dim=1)


def mask_paths() -> dict:
    """Ways from mask probabilities to RLE: name -> function of (probabilities, boxes, shape)."""
    from mmdet.structures.mask import encode_mask_results

    from eva_mm.detection.rle import encode_masks
    from eva_mm.detection.roi_head import paste_masks, paste_rle

    return {
        "bool maps, mmdet's encoding": lambda *args: [
            dict(rle, counts=rle['counts'].decode())
            for rle in encode_mask_results(paste_masks(*args, 0.5).numpy())
        ],
        'bool maps, our encoding': lambda *args: encode_masks(paste_masks(*args, 0.5)),
        'rle_masks': lambda *args: paste_rle(*args, 0.5),
    }


@benchmark(
    'mask_output',
    "from the mask head's output to RLE and its pickle, per image",
    detections=read_numbers,
    repeats=int,
)
def mask_output(detections: tuple[int, ...] = (300, 1000, 5000), repeats: int = 3) -> list[Table]:
    """One row per number of boxes and way; all must give the same RLEs."""
    import pickle

    import torch

    torch.set_num_threads(1)
    rows, paths = [], mask_paths()
    for number in detections:
        probs, boxes = make_mask_output(number)
        results, seconds = {}, {}
        for name, path in paths.items():
            path(probs[:10], boxes[:10], (HEIGHT, WIDTH))  # warm up
            reset_peak_rss()
            start, began = rss(), time.process_time()
            for _ in range(repeats):
                results[name] = path(probs, boxes, (HEIGHT, WIDTH))
            seconds[name] = (time.process_time() - began) / repeats
            above = peak_rss() - start
            size = len(pickle.dumps([r['counts'] for r in results[name]], protocol=2))
            first = next(iter(paths))
            if results[name] != results[first]:
                raise RuntimeError(f'{name} and {first} give different RLEs')
            rows.append(
                (
                    number,
                    name,
                    f'{seconds[name]:.2f}',
                    f'{seconds[first] / seconds[name]:.1f}',
                    f'{above / MIB:.0f}',
                    f'{size / 1000:.0f}',
                )
            )
    header = (
        'boxes', 'way', 'CPU time per image, s', 'times as fast', 'memory, MiB', 'RLE pickled, kB'
    )  # fmt: skip
    notes = (
        f'Image of {WIDTH} x {HEIGHT} px, boxes of 8 to 300 px, one thread; same RLEs to the byte.',
    )
    return [Table(header, rows, 'From the mask head to RLE', notes, ('onedl-mmcv', 'pycocotools'))]


if __name__ == '__main__':
    print(json.dumps(measure(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))))
