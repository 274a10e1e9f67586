"""Leaves of Kinetics at test size, and tiny videos."""

import struct
from pathlib import Path

import cv2
import numpy as np
from mmengine.config import Config

TINY = dict(patch_size=14, embed_dim=24, depth=2, num_heads=2, mlp_dim=32)


def shrink_video(
    cfg: Config, num_classes: int = 5, num_frames: int = 4, img_size: int = 56, **sizes
) -> Config:
    """A leaf at test size, in place; no type changes."""
    sizes = {**TINY, **sizes}
    cfg.model.backbone.update(num_frames=num_frames, img_size=img_size, drop_path_rate=0.0, **sizes)
    cfg.model.cls_head.update(num_classes=num_classes, in_channels=sizes['embed_dim'])
    if 'blending' in cfg.model.data_preprocessor:
        cfg.model.data_preprocessor.blending.num_classes = num_classes
    for name, short in (('train', 64), ('val', 64), ('test', img_size)):
        for transform in cfg[f'{name}_pipeline']:
            shrink_transform(transform, num_frames, img_size, short)
        cfg[f'{name}_dataloader'].update(num_workers=0, persistent_workers=False)
        cfg[f'{name}_dataloader'].dataset.pipeline = cfg[f'{name}_pipeline']
    return cfg


def shrink_transform(transform: dict, num_frames: int, img_size: int, short: int) -> None:
    """Sizes of one transform, in place."""
    if 'num_frames' in transform:
        transform.num_frames = num_frames
    for key in ('input_size', 'crop_size'):
        if key in transform:
            transform[key] = img_size
    if transform.type == 'Resize':
        transform.scale = (-1, short) if transform.scale[0] == -1 else (img_size, img_size)


def write_video(
    path: Path, num_frames: int = 12, size: tuple[int, int] = (96, 80), start: int = 0
) -> Path:
    """A video whose frame i is 10 + 10 * ((start + i) % 24) bright; size is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), 10, size)
    for index in range(num_frames):
        writer.write(np.full((size[1], size[0], 3), 10 + 10 * ((start + index) % 24), np.uint8))
    writer.release()
    return path


def put_index_first(path: Path) -> Path:
    """Make an MP4 like those of the web, in place: its index (`moov`) before the frames.

    Cut off, such a file opens, but its frames end early.
    """
    data, atoms, place = path.read_bytes(), {}, 0
    while place < len(data):
        length, kind = struct.unpack('>I4s', data[place : place + 8])
        atoms[kind] = bytearray(data[place : place + length])
        place += length
    moov = atoms.pop(b'moov')
    table = moov.index(b'stco') + 8  # offsets of the frames from the start of the file
    (count,) = struct.unpack('>I', moov[table : table + 4])
    for offset in range(table + 4, table + 4 + 4 * count, 4):
        (before,) = struct.unpack('>I', moov[offset : offset + 4])
        moov[offset : offset + 4] = struct.pack('>I', before + len(moov))
    path.write_bytes(atoms.pop(b'ftyp') + moov + b''.join(atoms.values()))
    return path
