"""Leaves of classification at test size, and tiny image folders."""

from pathlib import Path

import numpy as np
from mmengine.config import Config
from PIL import Image

TINY = dict(patch_size=8, embed_dim=16, depth=2, num_heads=2, mlp_dim=32)
COLOURS = [(220, 40, 40), (40, 220, 40), (40, 40, 220), (220, 220, 40), (40, 220, 220)]


def shrink_classifier(cfg: Config, num_classes: int = 5, img_size: int = 32, **sizes) -> Config:
    """A leaf at test size, in place; no type changes."""
    cfg.model.update(
        num_classes=num_classes, img_size=img_size, drop_path_rate=0.0, **{**TINY, **sizes}
    )
    if cfg.model.data_preprocessor.get('mixup'):
        cfg.model.data_preprocessor.mixup.num_classes = num_classes
    for pipeline in (cfg.get('train_pipeline'), cfg.get('test_pipeline')):
        for transform in pipeline or ():
            if 'size' in transform:
                transform.size = img_size
    return cfg


def save_image(path: Path, colour, seed: int = 0, size=(40, 36)) -> None:
    """A noisy image of one colour; size is (width, height) in pixels."""
    noise = np.random.default_rng(seed).integers(-20, 20, (size[1], size[0], 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(path)


def make_folders(root: Path, counts: dict[str, int]) -> Path:
    """Class folders with so many PNG images each."""
    for index, (name, count) in enumerate(counts.items()):
        for number in range(count):
            save_image(root / name / f'{number:03d}.png', COLOURS[index % 5], 100 * index + number)
    return root
