"""Masked image modelling with a CLIP teacher: EVA's pretraining (the paper, section 2).

Parameter names and layout are those of ``eva_psz14.pt``
(EVA-01/eva/modeling_pretrain.py, https://github.com/baaivision/EVA).

Shape letters: B batch, N patches (row-major), D the student's width, P outputs per patch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor, nn

from eva_mm.engine.strict_loading import StrictLoading
from eva_mm.errors import InputError
from eva_mm.resize import resize_pos_embed
from eva_mm.vit import EVAVisionTransformer, ViTSize

from .teacher import CLIPTeacher, OutsideWeights, Taught

# Standard deviation of the initial weights, and where the normal is cut: at one of them.
INIT_STD = 0.015


class PretrainingModel(StrictLoading, Taught, EVAVisionTransformer, BaseModel):
    """What masked students have in common: a teacher, a target, and mmengine's three modes.

    Subclasses say what they predict (:meth:`predict_patches`).

    Args:
        size: a name of :data:`eva_mm.vit.SIZES` or a :class:`~eva_mm.vit.ViTSize`.
        teacher: config of a :class:`~eva_mm.pretraining.teacher.CLIPTeacher`.
        target: config of a class of :mod:`eva_mm.pretraining.targets`.
        data_preprocessor: config; see
            :class:`~eva_mm.pretraining.preprocessor.PretrainDataPreprocessor`.
        **kwargs: see :class:`~eva_mm.vit.EVAVisionTransformer` (``img_size``, ``drop_path_rate``,
            ``activation_checkpointing``, ...) and
            :class:`~eva_mm.engine.strict_loading.StrictLoading`.

    Raises:
        InputError: student and teacher have different grids.
    """

    def __init__(
        self,
        size: str | ViTSize = 'giant',
        *,
        teacher: Mapping[str, Any] | CLIPTeacher,
        target: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ):
        # Pooled by the class token, which is what gives the transformer its final `norm`.
        super().__init__(size, teacher=teacher, pooling='cls', **kwargs)
        self.target = MODELS.build(target or dict(type='CosineRegression'))
        self.output_dim = self.target.output_dim(self.teacher.feature_dim)

    def init_weights(self) -> None:
        """Read what the teacher and the target need."""
        super().init_weights()
        if self.pos_embed.device.type != 'meta':
            self.target.load(self.teacher)

    def outside_weights(self) -> Iterator[OutsideWeights]:
        """Those of the teacher and of the target."""
        yield from super().outside_weights()
        yield from self.target.outside_weights()

    def predict_patches(self, image: Tensor, **masking: Tensor | None) -> tuple[Tensor, Tensor]:
        """Predictions for all patches (B, N, P), and the bool places (B, N) that are scored."""
        raise NotImplementedError

    def extract_feat(self, image: Tensor) -> Tensor:
        """Predictions (B, N, P) under some mask: by which a dry run estimates memory."""
        places = image.new_zeros(len(image), math.prod(self.pos_embed_grid))
        return self.predict_patches(image, mask=places.bool(), noise=places)[0]

    def forward(
        self,
        image: Tensor,
        mask: Tensor | None = None,
        noise: Tensor | None = None,
        teacher_image: Tensor | None = None,
        cache_slot: Tensor | None = None,
        mode: str = 'tensor',
    ) -> Any:
        """One of mmengine's three modes.

        Args:
            image: (B, 3, H, W), normalised.
            mask: (B, N) bool, true where patches are hidden.
            noise: (B, N) in [0, 1), for students that draw their masks from it.
            teacher_image: (B, 3, Ht, Wt), where the teacher takes another size.
            cache_slot: (B,) int64, place of the teacher's features in the cache.
            mode: 'loss' gives the terms as a dictionary; 'predict' a list of dictionaries, one
                per image, for the metric; 'tensor' the predictions (B, N, P).

        Raises:
            InputError: images of another size than ``img_size``.
        """
        self._check_size(image)
        prediction, where = self.predict_patches(image, mask=mask, noise=noise)
        if mode == 'tensor':
            return prediction
        features = self.teacher_features(
            image if teacher_image is None else teacher_image, cache_slot
        )
        self.target.load(self.teacher)
        if mode == 'loss':
            return self.target.loss(prediction, features, where)
        if mode == 'predict':
            return self.target.evaluate(prediction, features, where)
        raise ValueError(f"mode should be 'loss', 'predict' or 'tensor', got {mode!r}")

    def _check_size(self, image: Tensor) -> None:
        patch = self.size.patch_size
        expected = tuple(side * patch for side in self.pos_embed_grid)
        if tuple(image.shape[-2:]) != expected:
            raise InputError(
                f'images of {image.shape[-2]} x {image.shape[-1]} px, expected {expected[0]} x '
                f'{expected[1]} px (model.img_size): change `size` of the data pipeline'
            )


@MODELS.register_module()
class EVAForMIM(PretrainingModel):
    """EVA's student: masked patches are replaced by a token, and their features predicted.

    Masks may hide a different number of patches in each image. The loss is the mean over all
    hidden patches of a process's batch, as published (EVA-01/eva/engine_for_pretraining.py).

    Args:
        predict: 'masked', or 'all' for the pilot study's distillation: nothing is hidden, and the
            loss is over every patch. ``mask_token`` then stays as it is.
        **kwargs: see :class:`PretrainingModel`.

    Raises:
        ValueError: another ``predict``.
    """

    def __init__(
        self,
        size: str | ViTSize = 'giant',
        *,
        predict: str = 'masked',
        init_std: float = INIT_STD,
        init_cutoff: float = INIT_STD,
        **kwargs: Any,
    ):
        if predict not in ('masked', 'all'):
            raise ValueError(f"predict should be 'masked' or 'all', got {predict!r}")
        super().__init__(size, init_std=init_std, init_cutoff=init_cutoff, **kwargs)
        self.predict = predict
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.size.embed_dim))
        # Never reached by a gradient when nothing is hidden, which DDP would refuse.
        self.mask_token.requires_grad_(predict == 'masked')
        self.lm_head = nn.Linear(self.size.embed_dim, self.output_dim)
        for weight in (self.mask_token, self.lm_head.weight):
            nn.init.trunc_normal_(weight, std=init_std, a=-init_cutoff, b=init_cutoff)
        nn.init.zeros_(self.lm_head.bias)

    def embed(self, image: Tensor, mask: Tensor | None = None) -> tuple[Tensor, tuple[int, int]]:
        """As the core's; hidden patches are the mask token at their position.

        Raises:
            InputError: a mask for another grid.
        """
        x, grid = super().embed(image)
        if mask is None:
            return x, grid
        if mask.shape != (len(x), grid[0] * grid[1]):
            raise InputError(
                f'masks of shape {tuple(mask.shape)} do not fit {len(x)} images of '
                f'{grid[0]} x {grid[1]} patches'
            )
        pos_embed = resize_pos_embed(self.pos_embed, grid, 1, self.pos_embed_grid)
        hidden = (self.mask_token + pos_embed[:, 1:]).to(x.dtype)
        patches = torch.where(mask[..., None], hidden, x[:, 1:])
        return torch.cat((x[:, :1], patches), dim=1), grid

    def forward_features(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        """Image, mask (B, N) -> tokens (B, 1 + N, D) after ``norm``."""
        x, grid = self.embed(image, mask)
        for index in range(len(self.blocks)):
            x = self.run_block(index, x, grid)
        return self.norm(x)

    def predict_patches(
        self, image: Tensor, mask: Tensor | None = None, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See :class:`PretrainingModel`.

        Raises:
            InputError: masked patches are to be predicted, and the data give no masks.
        """
        if self.predict == 'all':
            prediction = self.lm_head(self.forward_features(image)[:, 1:])
            return prediction, torch.ones_like(prediction[..., 0], dtype=torch.bool)
        if mask is None:
            raise InputError(
                "the batch has no 'mask': the pipeline needs BlockMask or AlternatingMask"
            )
        mask = mask.bool()
        return self.lm_head(self.forward_features(image, mask)[:, 1:]), mask
