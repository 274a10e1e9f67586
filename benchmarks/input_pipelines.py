"""Images and clips per second that one core prepares for training, and where the time goes.

Files are generated: photo-like textures as JPEG with star-shaped polygons, and a moving texture as
MP4. Each kind is measured in a process of its own, in one thread. What is given to the model is
whole samples of the data sets of the leaf configs, from file to packed tensor.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.common import Table, benchmark, read_names
from benchmarks.measuring import side_by_side

DETECTION, IMAGENET, VIDEO = 'coco/eva_cascade', 'imagenet/eva_clip_ft_224', 'kinetics/eva_g_k400'
# Kind: what the child runs, and its options. Sizes are (width, height).
CASES = {
    'LSJ 1280, 640 x 480 px, 8 instances': ('detection', dict(size=(640, 480), instances=8)),
    'LSJ 1280, 640 x 480 px, 100 instances': ('detection', dict(size=(640, 480), instances=100)),
    'LSJ 1280, 2560 x 1920 px, 8 instances': ('detection', dict(size=(2560, 1920), instances=8)),
    'ImageNet train 224, 500 x 375 px': ('imagenet', dict(size=(500, 375))),
    'Video train 16 x 224, 340 x 256 px, 10 s': ('video', dict(size=(340, 256), frames=300)),
}
KINDS = ('detection', 'imagenet', 'video')
FILES = 8  # different images; clips are a quarter as many
POINTS = 34  # of a polygon, as LVIS has on average
PLAIN, OURS = 'ours, plain', 'ours'
PACKAGES = (
    'onedl-mmdetection',
    'onedl-mmcv',
    'Pillow',
    'opencv-python',
    'timm',
    'mmaction2',
    'decord',
)


# -------------------------------------------------------------------------------------------- data


def texture(size: tuple[int, int], rng):
    """An image (H, W, 3), uint8, whose contrast falls with frequency as that of photos does."""
    import cv2
    import numpy as np

    width, height = size
    image = np.full((height, width, 3), 128, np.float32)
    cells = 2
    while cells < max(size):
        coarse = rng.normal(0, 60 / cells**0.5, (cells * height // width + 2, cells, 3))
        image += cv2.resize(coarse.astype(np.float32), size, interpolation=cv2.INTER_CUBIC)
        cells *= 2
    return image.clip(0, 255).astype(np.uint8)


def write_images(folder: Path, size: tuple[int, int], count: int, rng) -> list[str]:
    """Write JPEG files; their names."""
    import cv2

    names = [f'{i}.jpg' for i in range(count)]
    for name in names:
        path = str(folder / name)
        cv2.imwrite(path, texture(size, rng), [cv2.IMWRITE_JPEG_QUALITY, 92])
    return names


def star(size: tuple[int, int], rng) -> list[float]:
    """A polygon about a random place, of up to half the image: flat x, y within the image."""
    import numpy as np

    centre = rng.uniform(0, size, 2)
    angles = np.sort(rng.uniform(0, 2 * np.pi, POINTS))
    radii = min(size) / 4 * rng.beta(1, 3) * rng.uniform(0.6, 1, POINTS) + 2
    points = centre + (radii * [np.cos(angles), np.sin(angles)]).T
    return points.clip(0, size).round(2).ravel().tolist()


def write_coco(folder: Path, size: tuple[int, int], instances: int, rng) -> Path:
    """Write images and their annotations in COCO's format; the file of the latter."""
    images, annotations = [], []
    for image_id, name in enumerate(write_images(folder, size, FILES, rng), 1):
        images.append(dict(id=image_id, file_name=name, width=size[0], height=size[1]))
        for _ in range(instances):
            points = star(size, rng)
            x, y = points[::2], points[1::2]
            annotations.append(
                dict(
                    id=len(annotations) + 1, image_id=image_id, category_id=1, iscrowd=0, area=1.0,
                    bbox=[min(x), min(y), max(x) - min(x), max(y) - min(y)],
                    segmentation=[points],
                )
            )  # fmt: skip
    path = folder / 'annotations.json'
    categories = [dict(id=1, name='star')]
    path.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))
    return path


def write_clips(folder: Path, size: tuple[int, int], frames: int, rng) -> Path:
    """Write clips in which a camera moves over a texture; the list of them."""
    import numpy as np

    from eva_mm.demo.motions import write_video

    width, height = size
    for number in range(FILES // 4):
        scene = texture((width + frames, height), rng)
        views = np.stack([scene[:, i : i + width] for i in range(frames)])
        write_video(folder / f'{number}.mp4', views)
    path = folder / 'train.txt'
    path.write_text(''.join(f'{number}.mp4 0\n' for number in range(FILES // 4)))
    return path


# --------------------------------------------------------------------------------------- baselines


def make_plain_jitter(**options):
    """:class:`LargeScaleJitter` as it reads: resize all by PIL, then cut; polygon by polygon."""
    import mmcv
    import numpy as np
    from shapely import geometry

    from eva_mm.detection.transforms import LargeScaleJitter

    def clip(points, window):
        corner = np.array(window[:2])
        polygon = geometry.Polygon(points)
        if polygon.is_valid and (points >= corner).all() and (points <= window[2:]).all():
            return [(points - corner).reshape(-1)]
        polygon = polygon.buffer(0.0)
        if not polygon.is_valid:
            return []
        cut = polygon.intersection(geometry.box(*window))
        return [
            (np.asarray(part.exterior.coords)[:-1] - corner).reshape(-1)
            for part in getattr(cut, 'geoms', [cut])
            if isinstance(part, geometry.Polygon) and not part.is_empty and part.is_valid
        ]

    class PlainJitter(LargeScaleJitter):
        @staticmethod
        def _image(results, size, window):
            image = np.ascontiguousarray(results['img'])
            image = mmcv.imresize(image, tuple(size.tolist()), backend='pillow')
            x1, y1, x2, y2 = window
            results['img'] = np.ascontiguousarray(image[y1:y2, x1:x2])
            results['img_shape'] = results['img'].shape[:2]

        @staticmethod
        def _cut_polygons(masks, size, window):
            ratio = size / (masks.width, masks.height)
            instances = ([np.reshape(p, (-1, 2)) * ratio for p in parts] for parts in masks.masks)
            return [
                [cut for points in parts for cut in clip(points, window)] for parts in instances
            ]

    return PlainJitter(**options)


def detection_pipelines() -> dict[str, list]:
    """The leaf's pipeline, its variants and mmdet's, each a list for a data set."""
    import eva_mm

    leaf = eva_mm.get_config(DETECTION).train_dataloader.dataset.pipeline
    jitter = dict(leaf[3])
    assert jitter.pop('type') == 'LargeScaleJitter'
    size = tuple(jitter['scale'])
    load, annotations, flip, pack = (
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
        dict(type='RandomFlip', prob=0.5),
        dict(type='PackDetInputs'),
    )
    stock = [
        dict(
            type='RandomResize', scale=size, ratio_range=jitter['ratio_range'], keep_ratio=True,
            resize_type='Resize',
        ),
        dict(
            type='RandomCrop', crop_type='absolute', crop_size=size, recompute_bbox=True,
            allow_negative_crop=True,
        ),
        dict(type='FilterAnnotations', min_gt_bbox_wh=(1e-2, 1e-2)),
        flip, pack,
    ]  # fmt: skip
    return {
        'mmdet, bitmaps': [load, annotations, *stock],
        'mmdet, polygons': [load, dict(annotations, poly2mask=False), *stock],
        PLAIN: [*leaf[:3], make_plain_jitter(**jitter), *leaf[4:]],
        OURS: leaf,
        'ours, decoded by OpenCV': [dict(leaf[0], imdecode_backend='cv2'), *leaf[1:]],
        'ours, draft mode': [dict(leaf[0], type='LoadDraftImage'), *leaf[1:]],
    }


def torchvision_jitter(**options) -> Callable:
    """torchvision's ColorJitter on one frame after the other."""
    from mmaction.registry import TRANSFORMS

    wrapper = TRANSFORMS.build(dict(type='TorchVisionWrapper', op='ColorJitter', **options))

    def transform(results: dict) -> dict:
        changed = [wrapper(dict(imgs=[image]))['imgs'][0] for image in results['imgs']]
        return dict(results, imgs=changed)

    return transform


# ----------------------------------------------------------------------------------- measurement


def detection_datasets(folder: Path, size: tuple[int, int], instances: int, rng) -> dict:
    """Data sets over the same files, by the name of their pipeline."""
    from mmengine.registry import init_default_scope

    import eva_mm.detection  # noqa: F401  registers the transforms
    from eva_mm.detection.datasets import EVACocoDataset

    init_default_scope('mmdet')
    path = str(write_coco(folder, size, instances, rng))
    return {
        name: EVACocoDataset(ann_file=path, data_prefix=dict(img=str(folder)), pipeline=pipeline)
        for name, pipeline in detection_pipelines().items()
    }


def imagenet_datasets(folder: Path, size: tuple[int, int], rng) -> dict:
    """The leaf's data set over one class; its transform is taken apart into timm's."""
    import eva_mm
    from eva_mm.classification import ClassificationImages

    (folder / 'a').mkdir()
    write_images(folder / 'a', size, FILES, rng)
    pipeline = eva_mm.get_config(IMAGENET).train_dataloader.dataset.pipeline
    return {OURS: ClassificationImages(data_root=str(folder), pipeline=pipeline)}


def video_datasets(folder: Path, size: tuple[int, int], frames: int, rng) -> dict:
    """The leaf's data set, colours changed by torchvision or by the leaf's transform."""
    import copy

    from mmengine.registry import init_default_scope

    import eva_mm
    from eva_mm.video.datasets import EVAVideoDataset

    init_default_scope('mmaction')
    path = str(write_clips(folder, size, frames, rng))
    leaf = eva_mm.get_config(VIDEO).train_dataloader.dataset.pipeline
    colours = dict(leaf[7].transforms[0])
    assert colours.pop('type') == 'ColorJitterPerFrame'
    plain = dict(leaf[7], transforms=[torchvision_jitter(**colours)])
    datasets = {}
    for name, change in ((PLAIN, plain), (OURS, leaf[7])):
        pipeline = [*leaf[:7], change, *leaf[8:]]
        datasets[name] = EVAVideoDataset(
            ann_file=path, data_prefix=dict(video=str(folder)), pipeline=copy.copy(pipeline)
        )
    return datasets


MAKERS = dict(detection=detection_datasets, imagenet=imagenet_datasets, video=video_datasets)


def steps_of(dataset) -> list[tuple[str, Callable]]:
    """Names and functions of what a data set does to its record of a sample."""
    steps = []
    for transform in dataset.pipeline.transforms:
        name = type(transform).__name__
        if name == 'RandomApply':
            inner = ', '.join(type(t).__name__ for t in transform.transforms.transforms)
            steps.append((f'{name}: {inner}', transform))
        elif name == 'TimmTransform':
            steps.append(('open_rgb', _open))
            steps += [(type(t).__name__, _on_image(t)) for t in transform.transform.transforms]
        else:
            steps.append((name, transform))
    return steps


def _open(record: dict) -> dict:
    from eva_mm.engine.image_data import open_rgb

    return dict(record, image=open_rgb(record['img_path']))


def _on_image(transform: Callable) -> Callable:
    return lambda record: dict(record, image=transform(record['image']))


def time_steps(dataset, count: int) -> dict[str, float]:
    """Seconds per sample of each step, the record itself included."""
    from eva_mm.engine.exact_data import seeded

    steps = steps_of(dataset)
    seconds: dict[str, float] = defaultdict(float)
    for position in range(-2, count):  # two that do not count
        with seeded(0, max(position, 0)):
            start = time.perf_counter()
            record = dataset.get_data_info(position % len(dataset))
            for name, step in [('record', lambda record: record), *steps]:
                record = step(record)
                now = time.perf_counter()
                seconds[name] += (now - start) * (position >= 0)
                start = now
    return {name: taken / count for name, taken in seconds.items()}


def measure_apart(*args) -> dict:
    """:func:`measure` in a process of its own, with the allocator as a training's workers have it.

    Each large image would else be memory fresh from the system, which takes longer than to fill it.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
        return pool.submit(measure, *args).result()


def measure(kind: str, case: dict, images: int, repeats: int) -> dict:
    """Measure one case in this process, in one thread.

    Args:
        kind: one of :data:`KINDS`.
        case: what is special about it, see :data:`CASES`.
        images: samples in a round.
        repeats: rounds of each pipeline, after one that does not count.

    Returns:
        ``seconds`` per sample by pipeline, and ``steps``, those of ours.
    """
    import cv2
    import numpy as np
    import torch

    from eva_mm.engine.exact_data import PositionedIndex

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        datasets = MAKERS[kind](Path(folder), rng=np.random.default_rng(0), **case)

        def load(dataset):
            # Positions seed what is drawn, so that ours and its variants draw alike.
            for i in range(images):
                dataset[PositionedIndex(i % len(dataset), i, 0)]

        runs = {name: lambda d=dataset: load(d) for name, dataset in datasets.items()}
        seconds = side_by_side(runs, repeats, 'cpu')
        steps = time_steps(datasets[OURS], images)
    return dict(seconds={name: s / images for name, s in seconds.items()}, steps=steps)


# ------------------------------------------------------------------------------------------ tables


def speed_rows(case: str, seconds: dict[str, float]) -> list[tuple]:
    """One row per pipeline; ratios to the plain form, or to ours where that is the only one."""
    base = seconds.get(PLAIN, seconds[OURS])
    return [
        (case, name, f'{1 / s:.3g}', f'{1000 * s:.1f}', f'{base / s:.2f}')
        for name, s in seconds.items()
    ]


def step_rows(case: str, steps: dict[str, float]) -> list[tuple]:
    """One row per step that takes at least a hundredth, the others together."""
    total = sum(steps.values())
    large = {name: s for name, s in steps.items() if s >= total / 100}
    large['others'] = total - sum(large.values())
    return [
        (case, name, f'{1000 * s:.2f}', f'{100 * s / total:.0f} %') for name, s in large.items()
    ]


@benchmark(
    'input_pipelines',
    'images/s per core: large-scale jitter from JPEG, ImageNet, clips; with the share of each step',
    images=int,
    clips=int,
    repeats=int,
    kinds=read_names,
)
def input_pipelines(
    images: int = 64, clips: int = 16, repeats: int = 3, kinds: Sequence[str] = KINDS
) -> list[Table]:
    """Tables of speeds and of steps."""
    speeds, steps = [], []
    for case, (kind, options) in CASES.items():
        if kind not in kinds:
            continue
        count = clips if kind == 'video' else images
        result = measure_apart(kind, options, count, repeats)
        speeds += speed_rows(case, result['seconds'])
        steps += step_rows(case, result['steps'])
        print(*itertools.chain(*speed_rows(case, result['seconds'])), file=sys.stderr, flush=True)
    notes = [
        f'{images} images or {clips} clips, median of {repeats} rounds, pipelines in turn; one '
        f'process, one thread; from file to packed sample, files in the page cache. Photo-like '
        f'textures (JPEG quality 92), polygons of {POINTS} points; clips are MPEG-4 without sound.',
        'Plain: the whole image resized by PIL, then cut, each polygon through shapely by itself; '
        "of the clips, colours by torchvision's ColorJitter. Ours draws the same random numbers "
        'and gives the same samples to within one grey level (clips: three); OpenCV decodes to the '
        'same pixels, draft mode to slightly other ones.',
        "mmdet: the transforms of its common/lsj-100e_coco-instance.py at 1280 px (OpenCV's "
        'bilinear filter without antialiasing), cut by crop_type absolute; they draw other scales.',
    ]
    return [
        Table(('input', 'pipeline', 'samples/s', 'ms', 'times plain'), speeds,
              'Training samples per second and core', notes, PACKAGES),
        Table(('input', 'step', 'ms', 'share'), steps, 'Where our time goes',
              ['Mean of one pass, step by step, of the pipeline called ours.'], PACKAGES),
    ]  # fmt: skip
