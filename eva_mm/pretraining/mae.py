"""EVA-L's pretraining: an encoder of visible patches alone, and a light decoder.

Source: EVA-01/eva/modeling_mae_pretrain.py (https://github.com/baaivision/EVA), after MAE
(arXiv 2111.06377). The published loss lacks its minus sign; either sign trains the same encoder,
since the last linear layer takes it up. Here it is there.

Shape letters: B batch, N patches (row-major), V visible ones, D the encoder's width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from eva_mm.errors import InputError
from eva_mm.vit import Block, ViTSize

from .model import PretrainingModel


def sincos_pos_embed(dim: int, grid: tuple[int, int]) -> Tensor:
    """Fixed 2-D positions: half of the channels tell the column, half the row.

    Args:
        dim: width, divisible by 4.
        grid: (h, w) in patches.

    Returns:
        (1, 1 + h * w, dim) float32; the class token's row is zero (arXiv 2111.06377, appendix A.1).

    Raises:
        ValueError: a width that 4 does not divide.
    """
    if dim % 4:
        raise ValueError(f'sin-cos positions need a width divisible by 4, got {dim}')
    quarter = dim // 4
    # Not on the meta device: positions are no parameters to be filled in later.
    frequencies = 10000.0 ** -(torch.arange(quarter, dtype=torch.float64, device='cpu') / quarter)
    rows, columns = torch.meshgrid(
        *(torch.arange(side, dtype=torch.float64, device='cpu') for side in grid), indexing='ij'
    )
    parts = []
    for places in (columns, rows):
        angles = places.reshape(-1, 1) * frequencies
        parts += [angles.sin(), angles.cos()]
    table = torch.cat(parts, dim=1).float()
    return torch.cat((table.new_zeros(1, dim), table))[None]


@MODELS.register_module()
class EVAMAE(PretrainingModel):
    """EVA-L's student: encodes visible patches, decodes the features of those removed.

    Each image keeps the same number of patches, those of the smallest noise.

    Args:
        mask_ratio: share of the patches that is removed.
        decoder_embed_dim: width of the decoder.
        decoder_depth: its blocks.
        decoder_num_heads: their heads; the MLP is four times as wide as the decoder.
        **kwargs: see :class:`~eva_mm.pretraining.model.PretrainingModel`.

    Raises:
        InputError: no patch would be kept, or none removed.
    """

    def __init__(
        self,
        size: str | ViTSize = 'large',
        *,
        mask_ratio: float = 0.75,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 4,
        decoder_num_heads: int = 16,
        **kwargs: Any,
    ):
        super().__init__(size, **kwargs)
        dim, width = self.size.embed_dim, decoder_embed_dim
        num_patches = math.prod(self.pos_embed_grid)
        self.num_kept = int(num_patches * (1 - mask_ratio))
        if not 0 < self.num_kept < num_patches:
            raise InputError(
                f'mask_ratio {mask_ratio} keeps {self.num_kept} of {num_patches} patches'
            )
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder_embed = nn.Linear(dim, width)
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, 1 + num_patches, width))
        self.decoder_blocks = nn.ModuleList(
            Block(width, decoder_num_heads, 4 * width, 'full', norm_eps=self.norm_eps)
            for _ in range(decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(width, eps=self.norm_eps)
        self.decoder_pred = nn.Linear(width, self.output_dim)
        self.pos_embed.requires_grad_(False)
        self.decoder_pos_embed.requires_grad_(False)
        self._reset()

    def reset_parameters(self, std: float, cutoff: float, head_scale: float) -> None:
        """Nothing: the core calls it before there is a decoder."""

    @torch.no_grad()
    def _reset(self) -> None:
        """Published initialisation: Xavier, biases 0, positions of sines, tokens N(0, 0.02)."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                # A convolution as the matrix that it is on patches.
                nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for table in (self.pos_embed, self.decoder_pos_embed):
            table.copy_(sincos_pos_embed(table.shape[-1], self.pos_embed_grid))
        for token in (self.cls_token, self.mask_token):
            nn.init.normal_(token, std=0.02)

    def encode(self, image: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Encode the patches of the smallest noise.

        Args:
            image: (B, 3, H, W), normalised.
            noise: (B, N).

        Returns:
            Tokens (B, 1 + V, D) after ``norm``, in ascending order of the noise, and that order
            (B, N) int64.

        Raises:
            InputError: noise for another grid.
        """
        x, grid = self.embed(image)
        if noise.shape != x[:, 1:, 0].shape:
            raise InputError(
                f'noise of shape {tuple(noise.shape)} does not fit {len(x)} images of '
                f'{grid[0]} x {grid[1]} patches'
            )
        order = noise.argsort(dim=1)
        kept = order[:, : self.num_kept, None].expand(-1, -1, x.shape[-1])
        x = torch.cat((x[:, :1], x[:, 1:].gather(1, kept)), dim=1)
        for index in range(len(self.blocks)):
            x = self.run_block(index, x, grid)
        return self.norm(x), order

    def decode(self, latent: Tensor, order: Tensor) -> Tensor:
        """What :meth:`encode` gives -> predictions for all patches (B, N, P), row-major."""
        x = self.decoder_embed(latent)
        B, V, width = len(x), x.shape[1] - 1, x.shape[2]
        removed = self.mask_token.to(x.dtype).expand(B, order.shape[1] - V, -1)
        patches = torch.cat((x[:, 1:], removed), dim=1)
        back = order.argsort(dim=1)[..., None].expand(-1, -1, width)
        x = torch.cat((x[:, :1], patches.gather(1, back)), dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:]

    def predict_patches(
        self, image: Tensor, mask: Tensor | None = None, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See :class:`~eva_mm.pretraining.model.PretrainingModel`.

        Raises:
            InputError: the data give no noise.
        """
        if noise is None:
            raise InputError("the batch has no 'noise': the pipeline needs MaskNoise")
        latent, order = self.encode(image, noise)
        removed = torch.ones_like(order, dtype=torch.bool)
        removed.scatter_(1, order[:, : self.num_kept], False)
        return self.decode(latent, order), removed
