"""EVA's vision transformer: the core that every task of this package taps.

Paper: EVA: Exploring the Limits of Masked Visual Representation Learning at Scale,
https://arxiv.org/abs/2211.07636. Parameter names are those of the published checkpoints
(https://github.com/baaivision/EVA, folder EVA-01, MIT licence).

Shape letters: B batch, N tokens, D width, H heads, C = D / H, h and w the grid in patches.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .rel_pos import decomposed_rel_pos_attention
from .resize import resize_patch_kernel, resize_pos_embed, resize_rel_pos, square_side

Grid = tuple[int, int]


@dataclass(frozen=True)
class ViTSize:
    """Shape of a transformer.

    Attributes:
        depth: number of blocks.
        embed_dim: width D.
        num_heads: attention heads.
        mlp_dim: hidden width of the MLP.
        patch_size: side of a patch in pixels.
        qkv_bias: 'qv' (query and value biases, no key bias), 'full' (one bias on qkv) or 'none'.
    """

    depth: int
    embed_dim: int
    num_heads: int
    mlp_dim: int
    patch_size: int = 14
    qkv_bias: str = 'qv'


SIZES: dict[str, ViTSize] = {
    # EVA, Table 2 of the paper's appendix and EVA-01/eva/modeling_finetune.py (`eva_g_patch14`).
    'giant': ViTSize(40, 1408, 16, 6144),
    # EVA-L: the MAE-style ViT-L of EVA-01/eva/modeling_mae_pretrain.py, hence one bias on qkv.
    'large': ViTSize(24, 1024, 16, 4096, qkv_bias='full'),
    # ViT-B/16 of the paper's pilot study; the smaller rows are DeiT's shapes (arXiv 2012.12877).
    'base': ViTSize(12, 768, 12, 3072, patch_size=16),
    'small': ViTSize(12, 384, 6, 1536, patch_size=16),
    'tiny': ViTSize(12, 192, 3, 768, patch_size=16),
}


def get_size(size: str | ViTSize, **overrides) -> ViTSize:
    """A row of :data:`SIZES`, with the overrides that are not None put in.

    Raises:
        ValueError: unknown name, or a width the heads do not divide.
    """
    if isinstance(size, str):
        if size not in SIZES:
            raise ValueError(f'unknown ViT size {size!r}, expected one of {sorted(SIZES)}')
        size = SIZES[size]
    size = dataclasses.replace(size, **{k: v for k, v in overrides.items() if v is not None})
    if size.embed_dim % size.num_heads:
        raise ValueError(f'embed_dim {size.embed_dim} is not divisible by {size.num_heads} heads')
    return size


CLIP_TOWERS = ('visual.trunk.', 'visual.', 'trunk.')
"""Where CLIP checkpoints keep the image tower: open_clip, the authors, open_clip's tower alone."""


def take_image_tower(state_dict: dict[str, Tensor], prefix: str = '') -> None:
    """Turn a CLIP model's weights into those of its image tower, in place.

    The tower's names lose what stands in front of them, and the text tower goes. Other state
    dicts stay as they are.

    Args:
        state_dict: names -> tensors.
        prefix: of the transformer's own names in it.
    """
    for tower in CLIP_TOWERS:
        start = prefix + tower
        if start + 'pos_embed' not in state_dict:
            continue
        for key in [key for key in state_dict if key.startswith(prefix)]:
            if key.startswith(start):
                state_dict[prefix + key[len(start) :]] = state_dict.pop(key)
            elif key[len(prefix) :].startswith(('text.', 'logit_scale')):
                del state_dict[key]
        return


class DropPath(nn.Module):
    """Stochastic depth: drops a residual branch for whole samples (arXiv 1603.09382)."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    @property
    def rate(self) -> float:
        """Probability to drop a sample's branch, in [0, 1)."""
        return self._rate

    @rate.setter
    def rate(self, rate: float) -> None:
        if not 0 <= rate < 1:
            raise ValueError(f'drop path rate should lie in [0, 1), got {rate}')
        self._rate = rate
        self._drops = rate > 0
        # A tensor, so that one compiled graph serves the blocks of every rate; on the CPU, where it
        # acts as a number on any device.
        self._keep = torch.tensor(1 - rate, dtype=torch.float32, device='cpu')

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; the first axis is the sample."""
        if not (self.training and self._drops):
            return x
        shape = (len(x),) + (1,) * (x.ndim - 1)
        mask = torch.rand(shape, dtype=torch.float32, device=x.device) < self._keep
        # Divided, not multiplied by 1 / keep, which bf16 would round to a biased factor.
        return x.div(self._keep) * mask

    def extra_repr(self) -> str:
        return f'rate={self.rate:.3f}'


class PatchEmbed(nn.Module):
    """Image (B, 3, H, W) -> map of patch tokens (B, D, h, w)."""

    def __init__(self, patch_size: int, in_channels: int, embed_dim: int):
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, embed_dim, patch_size, stride=patch_size)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        """Resize a kernel of another patch size, as ``eva_psz14to16.pt`` was made."""
        key = prefix + 'proj.weight'
        kernel, own = state_dict.get(key), self.proj.weight
        if kernel is not None and kernel.ndim == 4 and kernel.shape[2:] != own.shape[2:]:
            state_dict[key] = resize_patch_kernel(kernel, own.shape[2:])
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x: Tensor) -> Tensor:
        """Raises ValueError if a side of the image is no multiple of the patch."""
        H, W = x.shape[-2:]
        if H % self.patch_size or W % self.patch_size:
            raise ValueError(
                f'image of {H} x {W} pixels is not divisible into patches of {self.patch_size} px'
            )
        return self.proj(x)


class Attention(nn.Module):
    """Multi-head self-attention with EVA's biases and optional relative positions.

    Args:
        dim: width D.
        num_heads: heads H.
        qkv_bias: 'qv' (parameters ``q_bias`` and ``v_bias``), 'full' (``qkv.bias``) or 'none'.
        rel_pos_grid: grid (h, w) that the decomposed relative tables ``rel_pos_h`` and
            ``rel_pos_w`` are made for; None leaves them out. Other grids resize them on the fly.
        rel_pos_rule: how (see :func:`eva_mm.resize.resize_rel_pos`).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: str = 'qv',
        rel_pos_grid: Grid | None = None,
        rel_pos_rule: str = 'linear',
    ):
        super().__init__()
        if qkv_bias not in ('qv', 'full', 'none'):
            raise ValueError(f"qkv_bias must be 'qv', 'full' or 'none', got {qkv_bias!r}")
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.rel_pos_rule = rel_pos_rule
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias == 'full')
        self.q_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias == 'qv' else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias == 'qv' else None
        self.proj = nn.Linear(dim, dim)
        self.rel_pos_h = self.rel_pos_w = None
        if rel_pos_grid is not None:
            h, w = rel_pos_grid
            self.rel_pos_h = nn.Parameter(torch.zeros(2 * h - 1, dim // num_heads))
            self.rel_pos_w = nn.Parameter(torch.zeros(2 * w - 1, dim // num_heads))

    def _project_qkv(self, x: Tensor) -> Tensor:
        if self.q_bias is None:
            return self.qkv(x)
        bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
        return F.linear(x, self.qkv.weight, bias)

    def forward(self, x: Tensor, grid: Grid | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D); ``grid`` is needed with relative positions only."""
        B, N, D = x.shape
        qkv = self._project_qkv(x).reshape(B, N, 3, self.num_heads, D // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if self.rel_pos_h is None:
            x = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        else:
            x = decomposed_rel_pos_attention(
                q, k, v, self.rel_pos_h, self.rel_pos_w, grid, self.scale, self.rel_pos_rule
            )
        return self.proj(x.transpose(1, 2).reshape(B, N, D))

    def _load_from_state_dict(self, state_dict, prefix, *args):
        for name in ('rel_pos_h', 'rel_pos_w'):
            table, own = state_dict.get(prefix + name), getattr(self, name)
            if table is not None and own is not None and len(table) != len(own):
                state_dict[prefix + name] = resize_rel_pos(table, len(own), self.rel_pos_rule)
        super()._load_from_state_dict(state_dict, prefix, *args)


class Mlp(nn.Module):
    """Two linear layers with an exact (erf) GELU between."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


def partition_windows(x: Tensor, grid: Grid, window: int) -> tuple[Tensor, Grid]:
    """Tokens (B, h * w, D) -> (B * windows, window², D), and the zero-padded grid.

    The grid is padded at the bottom and right to a multiple of the window. Padding tokens are
    attended to like any other, as in ViTDet.
    """
    B, _, D = x.shape
    h, w = grid
    hp, wp = -(-h // window) * window, -(-w // window) * window
    x = x.reshape(B, h, w, D)
    if (hp, wp) != (h, w):
        x = F.pad(x, (0, 0, 0, wp - w, 0, hp - h))
    x = x.reshape(B, hp // window, window, wp // window, window, D).transpose(2, 3)
    return x.reshape(-1, window * window, D), (hp, wp)


def merge_windows(x: Tensor, padded: Grid, grid: Grid, window: int) -> Tensor:
    """Inverse of :func:`partition_windows`; drops the padding.

    Returns:
        Tokens in the order of (B, h * w, D): of that shape after padding; otherwise nothing is
        copied, and it is a view of shape (B, h / window, window, w / window, window, D).
    """
    (hp, wp), (h, w), D = padded, grid, x.shape[-1]
    x = x.reshape(-1, hp // window, wp // window, window, window, D).transpose(2, 3)
    if padded == grid:
        return x
    return x.reshape(-1, hp, wp, D)[:, :h, :w].reshape(-1, h * w, D)


class Block(nn.Module):
    """Pre-norm transformer block, optionally with attention inside square windows.

    Args:
        dim, num_heads, qkv_bias, rel_pos_grid, rel_pos_rule: see :class:`Attention`.
        mlp_dim: hidden width of the MLP.
        drop_path: probability to drop each of the two branches.
        layer_scale: initial value of ``gamma_1`` and ``gamma_2``; None leaves them out.
        window_size: side of the attention windows in patches; 0 is global attention.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_dim: int,
        qkv_bias: str = 'qv',
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        norm_eps: float = 1e-6,
        window_size: int = 0,
        rel_pos_grid: Grid | None = None,
        rel_pos_rule: str = 'linear',
    ):
        super().__init__()
        self.window_size = window_size
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, num_heads, qkv_bias, rel_pos_grid, rel_pos_rule)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, mlp_dim)
        self.drop_path = DropPath(drop_path)
        self.gamma_1 = self.gamma_2 = None
        if layer_scale is not None:
            self.gamma_1 = nn.Parameter(torch.full((dim,), float(layer_scale)))
            self.gamma_2 = nn.Parameter(torch.full((dim,), float(layer_scale)))

    def _attend(self, x: Tensor, grid: Grid | None) -> Tensor:
        if not self.window_size:
            return self.attn(x, grid)
        windows, padded = partition_windows(x, grid, self.window_size)
        windows = self.attn(windows, (self.window_size, self.window_size))
        return merge_windows(windows, padded, grid, self.window_size)

    def _add(self, x: Tensor, branch: Tensor, gamma: Tensor | None) -> Tensor:
        branch = self.drop_path(branch if gamma is None else gamma * branch)
        # Windows come as a view of the tokens in order: the sum is what puts them back.
        return (x.reshape(branch.shape) + branch).reshape(x.shape)

    def forward(self, x: Tensor, grid: Grid | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D); ``grid`` (h, w) is needed with windows or relative positions."""
        x = self._add(x, self._attend(self.norm1(x), grid), self.gamma_1)
        return self._add(x, self.mlp(self.norm2(x)), self.gamma_2)


class EVAVisionTransformer(nn.Module):
    """EVA's plain ViT with absolute positions, tapped by every task.

    Args:
        size: a name in :data:`SIZES`, or a :class:`ViTSize`.
        img_size: side (or (height, width)) in pixels that ``pos_embed`` is made for. Other input
            sizes resize it on the fly.
        patch_size, embed_dim, depth, num_heads, mlp_dim, qkv_bias: override the size's row.
        in_channels: channels of the image.
        num_classes: outputs of ``head``; 0 returns pooled features.
        pooling: 'mean' (mean of the patch tokens, then ``fc_norm``), 'cls' (``norm``, then the
            class token) or None (dense use: no final norm and no head).
        class_token: False leaves the class token out of the sequence. ``pos_embed`` keeps its
            slot, so that published checkpoints load unchanged.
        drop_path_rate: rate of the last block; grows linearly from 0 at the first.
        layer_scale: see :class:`Block`.
        stop_grad_patch_embed: detach the patch embedding's output, as the published classifier
            does (EVA-01/eva/modeling_finetune.py).
        activation_checkpointing: recompute each block in the backward pass, or the blocks of
            these numbers only (selective).
        init_std: of the truncated normal initialisation.
        init_cutoff: absolute bound of that normal: 2.0 in fine-tuning, ``init_std`` itself in
            pretraining (EVA-01/eva/modeling_pretrain.py).
        head_init_scale: factor on the initial ``head`` weights and biases.

    Raises:
        ValueError: unknown size or pooling, an ``img_size`` that the patches do not divide, or a
            block to recompute beyond the depth.
    """

    def __init__(
        self,
        size: str | ViTSize = 'giant',
        *,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | None = None,
        embed_dim: int | None = None,
        depth: int | None = None,
        num_heads: int | None = None,
        mlp_dim: int | None = None,
        qkv_bias: str | None = None,
        in_channels: int = 3,
        num_classes: int = 0,
        pooling: str | None = 'mean',
        class_token: bool = True,
        drop_path_rate: float = 0.0,
        layer_scale: float | None = None,
        norm_eps: float = 1e-6,
        stop_grad_patch_embed: bool = False,
        activation_checkpointing: bool | Sequence[int] = False,
        init_std: float = 0.02,
        init_cutoff: float = 2.0,
        head_init_scale: float = 0.001,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if pooling not in ('mean', 'cls', None) or (pooling == 'cls' and not class_token):
            raise ValueError(
                f"pooling must be 'mean', 'cls' (with class_token=True) or None, got {pooling!r}"
            )
        self.size = size = get_size(
            size,
            patch_size=patch_size,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_dim=mlp_dim,
            qkv_bias=qkv_bias,
        )
        self.pooling = pooling
        self.drop_path_rate = drop_path_rate
        self.layer_scale = layer_scale
        self.norm_eps = norm_eps
        self.stop_grad_patch_embed = stop_grad_patch_embed
        self.activation_checkpointing = activation_checkpointing
        self._check_recomputed()

        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        if height % size.patch_size or width % size.patch_size:
            raise ValueError(
                f'img_size {height} x {width} is not divisible into patches of {size.patch_size} px'
            )
        self.pos_embed_grid = (height // size.patch_size, width // size.patch_size)
        num_patches = self.pos_embed_grid[0] * self.pos_embed_grid[1]
        self.patch_embed = PatchEmbed(size.patch_size, in_channels, size.embed_dim)
        # Never reached by a gradient; DDP refuses parameters that say otherwise.
        self.patch_embed.requires_grad_(not stop_grad_patch_embed)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, size.embed_dim)) if class_token else None
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + num_patches, size.embed_dim))
        self.blocks = nn.ModuleList(self._make_block(i) for i in range(size.depth))
        norm = nn.LayerNorm(size.embed_dim, eps=norm_eps) if pooling else nn.Identity()
        self.norm = norm if pooling == 'cls' else nn.Identity()
        self.fc_norm = norm if pooling == 'mean' else None
        self.head = nn.Linear(size.embed_dim, num_classes) if num_classes else nn.Identity()
        self.reset_parameters(init_std, init_cutoff, head_init_scale)

    # -------------------------------------------------------------------------- construction

    def _drop_path(self, index: int) -> float:
        return self.drop_path_rate * index / max(self.size.depth - 1, 1)

    def _make_block(self, index: int) -> Block:
        """Block number ``index``; subclasses add windows and relative positions here."""
        return Block(**self._block_kwargs(index))

    def _block_kwargs(self, index: int) -> dict:
        return dict(
            dim=self.size.embed_dim,
            num_heads=self.size.num_heads,
            mlp_dim=self.size.mlp_dim,
            qkv_bias=self.size.qkv_bias,
            drop_path=self._drop_path(index),
            layer_scale=self.layer_scale,
            norm_eps=self.norm_eps,
        )

    @torch.no_grad()
    def reset_parameters(self, std: float, cutoff: float, head_scale: float) -> None:
        """Published initialisation: truncated normal, residual outputs divided by sqrt(2 k)."""

        def truncated_normal(tensor: Tensor) -> None:
            nn.init.trunc_normal_(tensor, std=std, a=-cutoff, b=cutoff)

        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                truncated_normal(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        truncated_normal(self.pos_embed)
        if self.cls_token is not None:
            truncated_normal(self.cls_token)
        for number, block in enumerate(self.blocks, start=1):
            block.attn.proj.weight.div_(math.sqrt(2 * number))
            block.mlp.fc2.weight.div_(math.sqrt(2 * number))
        if isinstance(self.head, nn.Linear):
            self.head.weight.mul_(head_scale)
            self.head.bias.mul_(head_scale)

    # ------------------------------------------------------------------------------- forward

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens in front of the patch tokens."""
        return 0 if self.cls_token is None else 1

    def embed(self, image: Tensor) -> tuple[Tensor, Grid]:
        """Image (B, 3, H, W), normalised -> tokens (B, prefix + h * w, D) and their grid (h, w)."""
        x = self.patch_embed(image)
        if self.stop_grad_patch_embed:
            x = x.detach()
        grid = tuple(x.shape[-2:])
        x = x.flatten(2).transpose(1, 2).contiguous()
        pos_embed = resize_pos_embed(self.pos_embed, grid, 1, self.pos_embed_grid)
        if self.cls_token is None:
            return x + pos_embed[:, 1:], grid
        x = torch.cat((self.cls_token.expand(len(x), -1, -1).to(x.dtype), x), dim=1)
        return x + pos_embed, grid

    def _check_recomputed(self) -> None:
        chosen = self.activation_checkpointing
        if not isinstance(chosen, bool) and any(not 0 <= i < self.size.depth for i in chosen):
            raise ValueError(
                f'activation_checkpointing {list(chosen)} exceeds a depth of '
                f'{self.size.depth} blocks'
            )

    def _recomputes(self, index: int) -> bool:
        chosen = self.activation_checkpointing
        return chosen if isinstance(chosen, bool) else index in chosen

    def run_block(self, index: int, x: Tensor, grid: Grid) -> Tensor:
        """One block, recomputed in the backward pass with ``activation_checkpointing``."""
        block = self.blocks[index]
        if self._recomputes(index) and self.training and torch.is_grad_enabled():
            return checkpoint(block, x, grid, use_reentrant=False)
        return block(x, grid)

    def forward_features(self, image: Tensor) -> Tensor:
        """Image (B, 3, H, W) -> tokens (B, prefix + h * w, D) after ``norm``."""
        x, grid = self.embed(image)
        for index in range(len(self.blocks)):
            x = self.run_block(index, x, grid)
        return self.norm(x)

    def forward_intermediates(self, image: Tensor, indices: Sequence[int]) -> list[Tensor]:
        """Raw outputs of chosen blocks, as maps.

        Args:
            image: (B, 3, H, W), normalised.
            indices: block numbers from 0; negative ones count from the end.

        Returns:
            One map (B, D, h, w) per entry of ``indices``, in that order, without any final norm.

        Raises:
            IndexError: a number beyond the depth.
        """
        depth = len(self.blocks)
        wanted = [i + depth if i < 0 else i for i in indices]
        if any(not 0 <= i < depth for i in wanted):
            raise IndexError(f'block indices {list(indices)} exceed a depth of {depth}')
        x, grid = self.embed(image)
        maps = {}
        for index in range(max(wanted) + 1):
            x = self.run_block(index, x, grid)
            if index in wanted:
                patches = x[:, self.num_prefix_tokens :]
                # Contiguous: mmcv's RoIAlign reads any other layout wrongly, without an error.
                maps[index] = patches.transpose(1, 2).reshape(len(x), -1, *grid).contiguous()
        return [maps[i] for i in wanted]

    def forward_patch_tokens(self, image: Tensor) -> Tensor:
        """Image -> patch tokens (B, h * w, D) after the final norm of either pooling."""
        x = self.forward_features(image)[:, self.num_prefix_tokens :]
        return x if self.fc_norm is None else self.fc_norm(x)

    def pool(self, tokens: Tensor) -> Tensor:
        """Tokens of :meth:`forward_features` -> (B, D)."""
        if self.pooling == 'mean':
            return self.fc_norm(tokens[:, self.num_prefix_tokens :].mean(dim=1))
        if self.pooling == 'cls':
            return tokens[:, 0]
        raise ValueError('a model with pooling=None is dense: it has no pooled feature')

    def forward(self, image: Tensor) -> Tensor:
        """Image (B, 3, H, W), normalised -> logits (B, num_classes), or pooled (B, D)."""
        return self.head(self.pool(self.forward_features(image)))

    # -------------------------------------------------------- what the model knows of itself

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Layer id of a parameter for layer-wise learning rate decay.

        Args:
            param_name: as in ``named_parameters()`` of the enclosing model.
            prefix: what stands before this module's own names, e.g. ``'backbone.'``.

        Returns:
            (id, number of ids): embeddings 0, block k counts k + 1, everything else depth + 1;
            the number of ids is depth + 2 (EVA-01/eva/optim_factory.py).
        """
        depth = len(self.blocks)
        name = param_name[len(prefix) :] if param_name.startswith(prefix) else None
        if name is None:
            return depth + 1, depth + 2
        if name.startswith(('cls_token', 'mask_token', 'pos_embed', 'patch_embed.')):
            return 0, depth + 2
        if name.startswith('blocks.'):
            return int(name.split('.')[1]) + 1, depth + 2
        return depth + 1, depth + 2

    def _load_from_state_dict(self, state_dict, prefix, *args):
        """Take a CLIP model's image tower and resize a position embedding of another grid.

        Here, so that it holds whichever way a checkpoint comes in.
        """
        take_image_tower(state_dict, prefix)
        key = prefix + 'pos_embed'
        loaded = state_dict.get(key)
        if loaded is not None and loaded.ndim == 3 and loaded.shape[1] != self.pos_embed.shape[1]:
            side = square_side(loaded.shape[1] - 1)
            state_dict[key] = resize_pos_embed(loaded, self.pos_embed_grid, 1, (side, side))
        super()._load_from_state_dict(state_dict, prefix, *args)
