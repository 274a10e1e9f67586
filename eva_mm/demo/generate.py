"""Generates whole demo data sets on disk, in the layout OpenMMLab configs expect."""

import json
import os
from pathlib import Path
from typing import Any

import cv2

from eva_mm.demo.coco import CocoWriter, file_name
from eva_mm.demo.lvis import LvisWriter
from eva_mm.demo.plan import SPLITS, plan_split
from eva_mm.demo.scenes import MIN_SIDE, draw_scene

# Raise when the same arguments give other files than before.
GENERATOR_VERSION = 2
STAMP = 'demo_stamp.json'
# Marks the folder as ours from the first moment, so that nothing else is ever overwritten.
_MARKER = '.eva_mm_demo'
_JPEG_QUALITY = 95


def generate_lvis(
    out: str | os.PathLike,
    num_train: int = 200,
    num_val: int = 60,
    size: int | tuple[int, int] = 256,
    seed: int = 0,
    crowds: bool = False,
) -> Path:
    """Generates a small LVIS v1 data set, and COCO files of the very same scenes.

    Writes ``annotations/lvis_v1_{train,val}.json``, ``annotations/instances_{train,val}2017.json``
    and ``{train,val}2017/000000000001.jpg`` ... The same arguments give the same bytes. A complete
    set made with the same arguments is left alone; a half-written or different one is made anew.

    Args:
        out: Folder of the data set.
        num_train: Training images. From 180 on there are rare (1-10 training images), common
            (11-100) and frequent categories as LVIS counts them; below, counts shrink.
        num_val: Validation images.
        size: Image side, or (height, width), in pixels.
        seed: Any non-negative integer.
        crowds: Show the instances LVIS leaves unannotated as clusters, which the COCO files
            annotate as ``iscrowd`` regions.

    Returns:
        The folder.

    Raises:
        ValueError: Too few or too small images, or a negative seed.
        FileExistsError: ``out`` holds data this function did not write.
    """
    out = Path(out)
    height, width = _check_size(size)
    if seed < 0:
        raise ValueError(f'seed is {seed}, expected a non-negative integer')
    arguments = {
        'kind': 'lvis', 'version': GENERATOR_VERSION, 'num_train': num_train, 'num_val': num_val,
        'size': [height, width], 'seed': seed, 'crowds': crowds,
    }  # fmt: skip
    if _is_complete(out, arguments):
        return out
    plans = {split: plan_split(split, n, seed) for split, n in zip(SPLITS, (num_train, num_val))}
    _claim(out)
    first_id = {'train': 1, 'val': num_train + 1}
    coco = {split: CocoWriter(split) for split in SPLITS}
    lvis = {split: LvisWriter(split) for split in SPLITS}
    for split in SPLITS:
        for index, plan in enumerate(plans[split]):
            scene = draw_scene(plan, (height, width), seed, split, index, crowds)
            image_id = first_id[split] + index
            _write_image(out / f'{split}2017' / file_name(image_id), scene.image)
            coco[split].add(image_id, scene)
            lvis[split].add(image_id, scene)
    for split in SPLITS:
        annotations = out / 'annotations'
        _write_json(annotations / f'instances_{split}2017.json', coco[split].build())
        _write_json(annotations / f'lvis_v1_{split}.json', lvis[split].build(lvis['train']))
    _write_stamp(out, arguments)
    return out


def _check_size(size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < MIN_SIDE:
        raise ValueError(f'size is {size}, expected sides of at least {MIN_SIDE} pixels')
    if max(height, width) > 3 * min(height, width):
        raise ValueError(f'size is {size}, expected sides that differ at most threefold')
    return height, width


def _data_files(out: Path) -> list[Path]:
    folders = ('annotations', *(f'{split}2017' for split in SPLITS))
    return sorted(p for folder in folders for p in (out / folder).glob('*') if p.is_file())


def _is_complete(out: Path, arguments: dict[str, Any]) -> bool:
    """Whether the stamp names these arguments and every file it lists has its size."""
    try:
        stamp = json.loads((out / STAMP).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    if stamp.get('arguments') != arguments:
        return False
    found = {p.relative_to(out).as_posix(): p.stat().st_size for p in _data_files(out)}
    return all(found.get(name) == size for name, size in stamp['bytes'].items())


def _claim(out: Path) -> None:
    """Empties a data set of ours, or starts one; refuses what is not ours."""
    files = _data_files(out)
    if files and not (out / _MARKER).exists():
        raise FileExistsError(
            f'{out} holds files this generator did not write (such as {files[0].name}); '
            'give another folder'
        )
    for folder in ('annotations', *(f'{split}2017' for split in SPLITS)):
        (out / folder).mkdir(parents=True, exist_ok=True)
    (out / _MARKER).touch()
    (out / STAMP).unlink(missing_ok=True)
    for file in files:
        file.unlink()


def _write_image(path: Path, image: Any) -> None:
    encoded, data = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    if not encoded:
        raise OSError(f'could not encode {path}')
    _write_bytes(path, data.tobytes())


def _write_json(path: Path, content: dict[str, Any]) -> None:
    _write_bytes(path, json.dumps(content).encode())


def _write_bytes(path: Path, data: bytes) -> None:
    temporary = path.with_name(f'{path.name}.tmp')
    temporary.write_bytes(data)
    os.replace(temporary, path)


def _write_stamp(out: Path, arguments: dict[str, Any]) -> None:
    sizes = {p.relative_to(out).as_posix(): p.stat().st_size for p in _data_files(out)}
    _write_json(out / STAMP, {'arguments': arguments, 'bytes': sizes})
