"""A teacher that says what the reference file says."""

import torch
from mmengine.registry import MODELS
from torch import Tensor

from eva_mm.pretraining.teacher import CLIPTeacher


@MODELS.register_module()
class FixedTeacher(CLIPTeacher):
    """Gives the same features for any image of the size that they are for."""

    features: Tensor

    def forward(self, image: Tensor) -> Tensor:
        assert image.shape[-2:] == self.image_size
        return self.features


def fixed_teacher(ref: dict) -> CLIPTeacher:
    """Teacher of the grid and width of a reference file, with its features."""
    c = ref['config']
    tower = dict(
        image_size=c['img_size'], patch_size=c['patch_size'], layers=1, width=64, head_width=64
    )
    with torch.random.fork_rng(devices=[]):
        teacher = FixedTeacher(dict(embed_dim=c['target_dim'], vision_cfg=tower), weights=None)
    teacher.features = ref['teacher']
    return teacher
