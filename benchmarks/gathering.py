"""Detections of several processes brought together before evaluation: ours beside mmdet's metrics.

Two processes on one machine, each with half of the images, gather by files (mmengine's
``collect_device='cpu'``, what all of these metrics do by default).
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import MIB, Table, benchmark, read_numbers
from benchmarks.evaluation import (
    HEIGHT,
    LVIS_CATEGORIES,
    PACKAGES,
    WIDTH,
    make_detections,
    make_ground_truth,
)

PROCESSES = 2
METRICS = {'ours': 'EVALVISMetric', "mmdet's": 'CocoMetric'}


def samples_of(data: dict, per_image: int, rank: int) -> list[dict]:
    """What a model gives for every second image: (n, 4) boxes, scores, labels and run lengths."""
    import torch

    found: dict[int, list] = {image['id']: [] for image in data['images'][rank::PROCESSES]}
    for box, mask in make_detections(data, per_image):
        if box['image_id'] in found:
            found[box['image_id']].append((box, mask['segmentation']))
    samples = []
    for image_id, pairs in found.items():
        boxes = torch.tensor([box['bbox'] for box, _ in pairs])
        boxes[:, 2:] += boxes[:, :2]
        instances = dict(
            bboxes=boxes,
            scores=torch.tensor([box['score'] for box, _ in pairs]),
            labels=torch.tensor([box['category_id'] - 1 for box, _ in pairs]),
            masks=[mask for _, mask in pairs],
        )
        samples.append(dict(img_id=image_id, ori_shape=(HEIGHT, WIDTH), pred_instances=instances))
    return samples


def measure(rank: int, truth: str, metric: str, per_image: int, rendezvous: str) -> dict:
    """Gather in this process, as one of :data:`PROCESSES`.

    Returns:
        ``seconds`` until the first process has everything, ``bytes`` that each process hands over,
        ``images`` that the first one has then.
    """
    import torch.distributed as dist
    from mmdet.registry import METRICS as REGISTRY
    from mmengine.dist import collect_results

    import eva_mm.detection  # noqa: F401  (registers the metric)

    dist.init_process_group(
        'gloo', init_method=f'file://{rendezvous}', rank=rank, world_size=PROCESSES
    )
    data = json.loads(Path(truth).read_text())
    evaluator = REGISTRY.build(dict(type=metric, ann_file=truth, metric=['bbox', 'segm']))
    evaluator.dataset_meta = dict(classes=tuple(c['name'] for c in data['categories']))
    for sample in samples_of(data, per_image, rank):
        evaluator.process({}, [sample])
    size = len(pickle.dumps(evaluator.results))
    dist.barrier()
    began = time.perf_counter()
    gathered = collect_results(evaluator.results, len(data['images']), 'cpu')
    seconds = time.perf_counter() - began
    return dict(seconds=seconds, bytes=size, images=len(gathered or ()))


def _in_children(folder: Path, metric: str, per_image: int) -> dict:
    """Results of the first process."""
    rendezvous = folder / f'{metric}_{per_image}'
    children = [
        subprocess.Popen(
            [sys.executable, '-m', 'benchmarks.gathering', str(rank), str(folder / 'truth.json'),
             metric, str(per_image), str(rendezvous)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(PROCESSES)
    ]  # fmt: skip
    outputs = [child.communicate() for child in children]
    for child, (_, errors) in zip(children, outputs):
        if child.returncode:
            raise RuntimeError(f'gathering for {metric} failed:\n{errors}')
    return json.loads(outputs[0][0].splitlines()[-1])


@benchmark(
    'gathering',
    "detections of two processes brought together: ours and mmdet's metric",
    images=int,
    detections=read_numbers,
)
def gathering(images: int = 500, detections: tuple[int, ...] = (300, 1000)) -> list[Table]:
    """One table; of LVIS, whose detections of categories that an image does not judge can go."""
    rows = []
    for per_image in detections:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            data = make_ground_truth(images, LVIS_CATEGORIES)
            (folder / 'truth.json').write_text(json.dumps(data))
            found = {title: _in_children(folder, m, per_image) for title, m in METRICS.items()}
        for title, values in found.items():
            if values['images'] != images:
                raise RuntimeError(f'{title}: {values["images"]} of {images} images came together')
            share = values['bytes'] / found["mmdet's"]['bytes']
            size, seconds = values['bytes'] / MIB, values['seconds']
            rows.append((per_image, title, f'{size:.1f}', f'{share:.2f}', f'{seconds:.2f}'))
    header = (
        'detections per image', 'metric', 'per process, MiB', "of mmdet's", 'time, s',
    )  # fmt: skip
    notes = (
        f'{images} images with boxes and masks of {LVIS_CATEGORIES} classes, {PROCESSES} processes '
        'of one machine; by files in its temporary folder.',
        'Ours leaves out what cannot count (categories that an image neither shows nor excludes) '
        'before it is gathered. For COCO every detection may count: there both are alike.',
    )
    return [Table(header, rows, 'Gathering between processes', notes, PACKAGES)]


if __name__ == '__main__':
    rank, truth, metric, per_image, rendezvous = sys.argv[1:]
    print(json.dumps(measure(int(rank), truth, metric, int(per_image), rendezvous)))
