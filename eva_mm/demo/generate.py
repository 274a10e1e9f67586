"""Generates whole demo data sets on disk, in the layout OpenMMLab configs expect."""

import os
from pathlib import Path

from eva_mm.demo.coco import CocoWriter, file_name
from eva_mm.demo.data_folder import DataFolder, check_seed, check_size, write_image, write_json
from eva_mm.demo.lvis import LvisWriter
from eva_mm.demo.plan import SPLITS, plan_split
from eva_mm.demo.scenes import draw_scene

# Raise when the same arguments give other files than before.
GENERATOR_VERSION = 2


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
    height, width = check_size(size)
    check_seed(seed)
    arguments = {
        'kind': 'lvis', 'version': GENERATOR_VERSION, 'num_train': num_train, 'num_val': num_val,
        'size': [height, width], 'seed': seed, 'crowds': crowds,
    }  # fmt: skip
    folder = DataFolder(out, ('annotations', *(f'{split}2017' for split in SPLITS)))
    if folder.is_complete(arguments):
        return out
    plans = {split: plan_split(split, n, seed) for split, n in zip(SPLITS, (num_train, num_val))}
    folder.claim()
    first_id = {'train': 1, 'val': num_train + 1}
    coco = {split: CocoWriter(split) for split in SPLITS}
    lvis = {split: LvisWriter(split) for split in SPLITS}
    for split in SPLITS:
        for index, plan in enumerate(plans[split]):
            scene = draw_scene(plan, (height, width), seed, split, index, crowds)
            image_id = first_id[split] + index
            write_image(out / f'{split}2017' / file_name(image_id), scene.image)
            coco[split].add(image_id, scene)
            lvis[split].add(image_id, scene)
    for split in SPLITS:
        annotations = out / 'annotations'
        write_json(annotations / f'instances_{split}2017.json', coco[split].build())
        write_json(annotations / f'lvis_v1_{split}.json', lvis[split].build(lvis['train']))
    folder.finish(arguments)
    return out
