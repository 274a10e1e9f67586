"""The pretraining leaves at test size: no type of component changes."""

import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from ..helpers import load_config

SIDE, PATCH = 56, 14
GRID = SIDE // PATCH
FEATURES = 24
# Arguments of open_clip.model.CLIP without the text tower.
CLIP = dict(
    embed_dim=FEATURES,
    quick_gelu=True,
    vision_cfg=dict(image_size=SIDE, layers=2, width=64, head_width=32, patch_size=PATCH),
)


def small_options(name: str) -> dict:
    """What shrinks the model of a leaf."""
    model = dict(
        size='tiny',
        img_size=SIDE,
        patch_size=PATCH,
        embed_dim=32,
        depth=3,
        num_heads=2,
        mlp_dim=64,
        qkv_bias='full' if 'eva_l' in name else 'qv',
        teacher=dict(model=dict(_delete_=True, **CLIP), weights=None),
    )
    if 'eva_l' in name:
        model.update(decoder_embed_dim=16, decoder_depth=2, decoder_num_heads=2)
    if 'tokenized' in name:
        model['target'] = dict(num_codes=16, feature_dim=FEATURES, codebook=None)
    return model


def small_leaf(name: str, data_root: str = '', **model) -> Config:
    """A leaf of configs/pretrain, shrunk; ``model`` holds further options of the model.

    With ``data_root`` its loaders read ``train`` and ``val`` there, four images at a time.
    """
    cfg = load_config(f'pretrain/{name}', scope='mmengine')
    cfg.merge_from_dict(dict(model=small_options(name)))
    cfg.merge_from_dict(dict(model=model))
    for part in ('train', 'val', 'test'):
        loader = cfg[f'{part}_dataloader']
        loader.update(batch_size=4, num_workers=0, persistent_workers=False, pin_memory=False)
        loader.dataset.data_root = f'{data_root}/{"train" if part == "train" else "val"}'
        for transform in loader.dataset.pipeline:
            if 'size' in transform:
                transform.update(size=SIDE, teacher_size=SIDE)
            if 'resize' in transform:
                transform.resize = SIDE + 8
            if 'grid_size' in transform:
                transform.grid_size = GRID
            if 'num_masked' in transform:
                transform.update(num_masked=7, min_area=2)
    return cfg


def build(name: str, **model) -> torch.nn.Module:
    """The small model of a leaf, with seeded weights."""
    torch.manual_seed(0)
    student = MODELS.build(small_leaf(name, **model).model)
    student.teacher.load()
    return student


def random_batch(num_images: int = 4, seed: int = 0) -> dict:
    """A collated batch with masks of different sizes and noise."""
    generator = torch.Generator().manual_seed(seed)
    places = GRID * GRID
    noise = torch.rand(num_images, places, generator=generator)
    counts = torch.arange(num_images) % (places // 2) + 3
    return dict(
        image=torch.randint(
            0, 256, (num_images, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator
        ),
        mask=noise.argsort(1).argsort(1) < counts[:, None],
        noise=noise,
        img_path=[f'{i}.jpg' for i in range(num_images)],
    )
