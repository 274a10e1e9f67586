"""EVA as a segmentation backbone: the plain ViT in a ViT-Adapter."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmcv.ops import MultiScaleDeformableAttention
from mmengine.model import BaseModule
from mmseg.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from eva_mm.engine.strict_loading import PARTS_OF_OTHER_TASKS, StrictLoading
from eva_mm.errors import InputError
from eva_mm.resize import resize_pos_embed
from eva_mm.vit import Block, EVAVisionTransformer, Grid, ViTSize

from .adapter import Geometry, Interaction, SpatialPriorModule, norm2d, pyramid_grids
from .rel_pos_bias import TableAttention
from .sync_norm import EVASyncBN  # noqa: F401  (built by name)

STRIDES = (4, 8, 16, 32)
NUM_GROUPS = 4


@MODELS.register_module()
class EVAViTAdapter(StrictLoading, EVAVisionTransformer, BaseModule):
    """EVA's blocks in four groups, with a pyramid that exchanges features with each of them.

    The class token goes through the blocks and takes no part in the exchange; there is no final
    norm. Source: arXiv 2205.08534; github.com/baaivision/EVA,
    EVA-01/seg/mmseg_custom/models/backbones/beit_adapter.py.

    Args:
        size: a name of :data:`eva_mm.vit.SIZES` or a :class:`~eva_mm.vit.ViTSize`.
        img_size: side in pixels of the crops that ``pos_embed`` (and the tables) are made for.
            Other inputs resize them on the fly, those whose sides 32 divides.
        patch_size: 16, the stride of the third map.
        relative_position_bias: give each block BEiT's table of relative positions, zero at first.
        layer_scale: initial value of ``gamma_1`` and ``gamma_2``; None leaves them out.
        drop_path_rate: of the blocks, growing from 0, and all of it in every extractor.
        stem_channels: of the spatial prior's first convolutions.
        num_points: samples per head and level of the deformable attention.
        deform_num_heads: its heads.
        deform_ratio: width of its values over the ViT's width.
        cffn_ratio: hidden width of the extractors' feed-forward layers over the ViT's width.
        interaction_indexes: first and last block of each of the four groups, which follow one
            another; four equal ones by default.
        norm_cfg: of the spatial prior and the outputs. Batch statistics, synchronised over
            processes as published (:class:`~eva_mm.segmentation.sync_norm.EVASyncBN`).
        activation_checkpointing: recompute blocks in the backward pass (see
            :class:`~eva_mm.vit.EVAVisionTransformer`), and unless False what stands around them.
        init_cfg: mmengine initialisation, e.g.
            ``dict(type='Pretrained', checkpoint='eva://eva_psz14to16')``.
        **size_overrides: see :class:`~eva_mm.vit.EVAVisionTransformer`; ``allowed_missing`` and
            ``allowed_unexpected`` are those of :class:`StrictLoading`.

    Raises:
        ValueError: unknown ``size``, another patch size than 16, or groups that don't cover the
            blocks.
    """

    # What pretraining has not, and what of it is left aside.
    may_be_missing = (
        'blocks.*.gamma_?',
        'blocks.*.attn.relative_position_bias_table',
        'level_embed',
        'spm.*',
        'interactions.*',
        'up.*',
        'norm?.*',
    )
    may_be_unexpected = (
        *(name for name in PARTS_OF_OTHER_TASKS if name != 'cls_token'),
        'blocks.*.attn.relative_position_index',  # computed here
    )

    def __init__(
        self,
        size: str | ViTSize = 'giant',
        *,
        img_size: int = 896,
        patch_size: int = 16,
        relative_position_bias: bool = False,
        layer_scale: float | None = None,
        drop_path_rate: float = 0.0,
        stem_channels: int = 64,
        num_points: int = 4,
        deform_num_heads: int = 16,
        deform_ratio: float = 0.5,
        cffn_ratio: float = 0.25,
        interaction_indexes: Sequence[Sequence[int]] | None = None,
        norm_cfg: dict | None = None,
        activation_checkpointing: bool | Sequence[int] = False,
        init_cfg: dict | None = None,
        **size_overrides,
    ):
        if patch_size != STRIDES[2]:
            raise ValueError(f'patch_size should be {STRIDES[2]}, got {patch_size}')
        self._has_tables = relative_position_bias
        super().__init__(
            size,
            img_size=img_size,
            patch_size=patch_size,
            pooling=None,
            layer_scale=layer_scale,
            drop_path_rate=drop_path_rate,
            activation_checkpointing=activation_checkpointing,
            init_cfg=init_cfg,
            **size_overrides,
        )
        dim, norm_cfg = self.size.embed_dim, norm_cfg or dict(type='EVASyncBN')
        self.groups = _block_groups(self.size.depth, interaction_indexes)
        self.level_embed = nn.Parameter(torch.zeros(3, dim))
        self.spm = SpatialPriorModule(stem_channels, dim, norm_cfg)
        self.interactions = nn.ModuleList(
            Interaction(
                dim,
                deform_num_heads,
                num_points,
                deform_ratio,
                cffn_ratio,
                drop_path_rate,
                extra_extractors=2 if i == NUM_GROUPS - 1 else 0,
            )
            for i in range(NUM_GROUPS)
        )
        self.up = nn.ConvTranspose2d(dim, dim, 2, stride=2)
        for i in range(1, NUM_GROUPS + 1):
            self.add_module(f'norm{i}', norm2d(norm_cfg, dim))
        self._reset_adapter()

    def _make_block(self, index: int) -> Block:
        kwargs = self._block_kwargs(index)
        block = Block(**kwargs)
        if self._has_tables:
            block.attn = TableAttention(
                kwargs['dim'], kwargs['num_heads'], kwargs['qkv_bias'], self.pos_embed_grid
            )
        return block

    @torch.no_grad()
    def _reset_adapter(self) -> None:
        """Published initialisation of what stands around the ViT."""
        nn.init.normal_(self.level_embed)
        for module in (*self.spm.modules(), *self.interactions.modules(), self.up):
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                area = module.kernel_size[0] * module.kernel_size[1]
                fan_out = area * module.out_channels // module.groups
                module.weight.normal_(0, math.sqrt(2 / fan_out))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.interactions.modules():
            if isinstance(module, MultiScaleDeformableAttention):
                module.init_weights()

    # ------------------------------------------------------------------------------- forward

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Normalised image (B, 3, H, W) -> maps (B, D, H / s, W / s), s = 4, 8, 16, 32.

        Raises:
            InputError: a side of the image that 32 does not divide.
        """
        H, W = image.shape[-2:]
        if H % STRIDES[-1] or W % STRIDES[-1]:
            raise InputError(
                f'image of {H} x {W} pixels: ViT-Adapter needs sides that {STRIDES[-1]} divides; '
                "pad it, or resize it by dict(type='ResizeToMultiple', size_divisor=32)"
            )
        c1, *maps = self.spm(image)
        embedded = [
            level.flatten(2).transpose(1, 2) + embed for level, embed in zip(maps, self.level_embed)
        ]
        taps, levels, grids = self._interact(image, torch.cat(embedded, dim=1))
        parts = levels.split([h * w for h, w in grids], dim=1)
        c2, c3, c4 = (_to_map(part, grid) for part, grid in zip(parts, grids))
        pyramid = (self.up(c2) + c1, c2, c3, c4)
        return tuple(
            getattr(self, f'norm{i}')(level + _scaled(tap, STRIDES[2] / stride))
            for i, (level, tap, stride) in enumerate(zip(pyramid, taps, STRIDES), start=1)
        )

    def _interact(self, image: Tensor, levels: Tensor) -> tuple[list[Tensor], Tensor, list[Grid]]:
        """Blocks and exchanges in turn -> map (B, D, h, w) after each group, levels, grids."""
        x, cls_token, grid = self._embed_apart(image)
        grids = pyramid_grids(grid)
        to_levels = Geometry.of([grid], grids, x.device)
        to_tokens = Geometry.of(grids, [grid], x.device)
        taps = []
        for interaction, blocks in zip(self.interactions, self.groups):
            x = self._recomputed(interaction.injector, x, levels, to_levels)
            x = torch.cat((cls_token, x), dim=1)
            for index in blocks:
                x = self.run_block(index, x, grid)
            cls_token, x = x[:, :1], x[:, 1:]
            for extractor in interaction.extractors:
                levels = self._recomputed(extractor, levels, x, to_tokens, grids)
            taps.append(_to_map(x, grid))
        return taps, levels, grids

    def _embed_apart(self, image: Tensor) -> tuple[Tensor, Tensor, Grid]:
        """Image -> patch tokens (B, N, D) with positions, class token (B, 1, D), grid.

        The published adapter gives the class token no position.
        """
        x = self.patch_embed(image)
        grid = tuple(x.shape[-2:])
        x = x.flatten(2).transpose(1, 2)
        pos_embed = resize_pos_embed(self.pos_embed, grid, 1, self.pos_embed_grid)[:, 1:]
        return x + pos_embed, self.cls_token.expand(len(x), -1, -1).to(x.dtype), grid

    def _recomputed(self, module: nn.Module, *args) -> Tensor:
        if self.activation_checkpointing is not False and self.training and torch.is_grad_enabled():
            return checkpoint(module, *args, use_reentrant=False)
        return module(*args)


def _block_groups(depth: int, indexes: Sequence[Sequence[int]] | None) -> list[range]:
    """First and last blocks of the groups -> their numbers."""
    if indexes is None:
        bounds = [depth * i // NUM_GROUPS for i in range(NUM_GROUPS + 1)]
        groups = [range(a, b) for a, b in zip(bounds, bounds[1:])]
    else:
        groups = [range(pair[0], pair[-1] + 1) for pair in indexes]
    if len(groups) != NUM_GROUPS or [i for g in groups for i in g] != list(range(depth)):
        raise ValueError(
            f'interaction_indexes should be {NUM_GROUPS} pairs of a first and a last block that '
            f'follow one another from 0 to {depth - 1}, got {indexes}'
        )
    return groups


def _to_map(tokens: Tensor, grid: Grid) -> Tensor:
    """(B, h * w, D) -> (B, D, h, w)."""
    return tokens.transpose(1, 2).reshape(len(tokens), -1, *grid).contiguous()


def _scaled(maps: Tensor, factor: float) -> Tensor:
    if factor == 1:
        return maps
    return F.interpolate(maps, scale_factor=factor, mode='bilinear', align_corners=False)
