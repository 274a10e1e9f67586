"""EVA on clips: 3-D patches and joint attention over all frames.

Source: EVA-01/video/models/{beit,clip_mae}.py and EVA-01/video/utils/tools.py,
https://github.com/baaivision/EVA.

Shape letters: B batch, C channels, D width, H and W height and width in pixels; T frames, t, h, w
the grid of tokens (t = T / tubelet).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmaction.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from eva_mm.engine.strict_loading import PARTS_OF_OTHER_TASKS, StrictLoading
from eva_mm.errors import InputError
from eva_mm.resize import resize_patch_kernel, resize_pos_embed, square_side
from eva_mm.vit import EVAVisionTransformer, ViTSize, take_image_tower

ClipGrid = tuple[int, int, int]
PUBLISHED_IMAGE_SIZE = 224  # of every published video model (EVA-01/video/configs)


class TubeletEmbed(nn.Module):
    """Clip (B, C, T, H, W) -> tokens as a map (B, D, t, h, w)."""

    def __init__(self, tubelet_size: int, patch_size: int, in_channels: int, embed_dim: int):
        super().__init__()
        self.size = (tubelet_size, patch_size, patch_size)
        self.proj = nn.Conv3d(in_channels, embed_dim, self.size, stride=self.size)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        """Spread an image model's kernel (D, C, h, w) evenly over the tubelet's frames."""
        key = prefix + 'proj.weight'
        kernel = state_dict.get(key)
        if kernel is not None and kernel.ndim == 4:
            tubelet = self.size[0]
            if kernel.shape[2:] != self.size[1:]:
                kernel = resize_patch_kernel(kernel, self.size[1:])
            state_dict[key] = (kernel / tubelet)[:, :, None].repeat(1, 1, tubelet, 1, 1)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, clip: Tensor) -> Tensor:
        """Raises ValueError if the clip does not divide into tubelets."""
        if any(side % part for side, part in zip(clip.shape[-3:], self.size)):
            raise ValueError(
                f'clip of {" x ".join(map(str, clip.shape[-3:]))} (frames, height, width) is not '
                f'divisible into tubelets of {" x ".join(map(str, self.size))}'
            )
        return self.proj(clip)


def repeat_pos_embed(pos_embed: Tensor, grid: ClipGrid) -> Tensor:
    """Position embedding of images for clips: the same for each step in time.

    Args:
        pos_embed: (1, 1 + side², D) with the class token's slot first.
        grid: (t, h, w) to make it for.

    Returns:
        (1, 1 + t * h * w, D), frame after frame; the class token's slot stays.
    """
    resized = resize_pos_embed(pos_embed, grid[1:])
    return torch.cat((resized[:, :1], resized[:, 1:].repeat(1, grid[0], 1)), dim=1)


def resize_clip_pos_embed(pos_embed: Tensor, source: ClipGrid, target: ClipGrid) -> Tensor:
    """Resize a position embedding of clips trilinearly, in fp32 as published.

    Args:
        pos_embed: (1, 1 + t * h * w, D), frame after frame, the class token's slot first; that
            one stays as it is.
        source: (t, h, w) that it is for.
        target: (t, h, w) to resize to.

    Returns:
        (1, 1 + t * h * w, D) of the target, same dtype.
    """
    if tuple(source) == tuple(target):
        return pos_embed
    dtype = torch.promote_types(pos_embed.dtype, torch.float32)
    grid = pos_embed[:, 1:].to(dtype).transpose(1, 2).reshape(1, -1, *source)
    grid = F.interpolate(grid, size=tuple(target), mode='trilinear', align_corners=False)
    patches = grid.flatten(2).transpose(1, 2).to(pos_embed.dtype)
    return torch.cat((pos_embed[:, :1], patches), dim=1)


@MODELS.register_module()
class EVAVideoTransformer(StrictLoading, EVAVisionTransformer, BaseModule):
    """EVA's ViT on clips, with joint space-time attention over all tokens and a class token.

    Weights of image models (a 2-D patch kernel) become those of a video model when they are
    loaded, and weights for another number of frames are resized in time, whichever way they come
    in. Other clip lengths and sizes than its own are taken, by resizing ``pos_embed`` on the fly.

    Args:
        size: a name of :data:`eva_mm.vit.SIZES` or a :class:`~eva_mm.vit.ViTSize`.
        num_frames: T that ``pos_embed`` is made for.
        tubelet_size: frames per token; 1 in every published run.
        img_size: side (or (height, width)) in pixels that ``pos_embed`` is made for.
        checkpoint_frames: T of the video checkpoints that will be loaded, where these are of
            another image size; by default they are taken to be of this one.
        drop_path_rate, activation_checkpointing, **kwargs: see
            :class:`~eva_mm.vit.EVAVisionTransformer`; ``allowed_missing`` and
            ``allowed_unexpected``: see :class:`StrictLoading`.
        init_cfg: mmengine initialisation, e.g. ``dict(type='Pretrained', checkpoint=...)``.

    Raises:
        ValueError: frames that do not divide into tubelets.
    """

    may_be_missing = ('blocks.*.gamma_?',)
    # The class token is part of the sequence here.
    may_be_unexpected = tuple(name for name in PARTS_OF_OTHER_TASKS if name != 'cls_token')

    def __init__(
        self,
        size: str | ViTSize = 'giant',
        *,
        num_frames: int = 16,
        tubelet_size: int = 1,
        img_size: int | tuple[int, int] = PUBLISHED_IMAGE_SIZE,
        in_channels: int = 3,
        checkpoint_frames: int | None = None,
        drop_path_rate: float = 0.0,
        activation_checkpointing: bool | Sequence[int] = False,
        init_std: float = 0.02,
        init_cutoff: float = 2.0,
        init_cfg: dict | None = None,
        **kwargs,
    ):
        for frames in (num_frames, checkpoint_frames or tubelet_size):
            if frames < 1 or frames % tubelet_size:
                raise ValueError(
                    f'{frames} frames are not divisible into tubelets of {tubelet_size}'
                )
        super().__init__(
            size,
            img_size=img_size,
            in_channels=in_channels,
            pooling=None,
            drop_path_rate=drop_path_rate,
            activation_checkpointing=activation_checkpointing,
            init_std=init_std,
            init_cutoff=init_cutoff,
            init_cfg=init_cfg,
            **kwargs,
        )
        self.tubelet_size = tubelet_size
        self.checkpoint_frames = checkpoint_frames
        height, width = self.pos_embed_grid
        self.clip_grid: ClipGrid = (num_frames // tubelet_size, height, width)
        width_d = self.size.embed_dim
        self.patch_embed = TubeletEmbed(tubelet_size, self.size.patch_size, in_channels, width_d)
        num_tokens = self.clip_grid[0] * height * width
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + num_tokens, width_d))
        for tensor in (self.patch_embed.proj.weight, self.pos_embed):
            nn.init.trunc_normal_(tensor, std=init_std, a=-init_cutoff, b=init_cutoff)
        nn.init.zeros_(self.patch_embed.proj.bias)
        self.patch_embed.requires_grad_(not self.stop_grad_patch_embed)

    def embed(self, clip: Tensor) -> tuple[Tensor, ClipGrid]:
        """Clip (B, C, T, H, W), normalised -> tokens (B, 1 + t * h * w, D) and their grid."""
        x = self.patch_embed(clip)
        if self.stop_grad_patch_embed:
            x = x.detach()
        grid = tuple(x.shape[-3:])
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(len(x), -1, -1).to(x.dtype), x), dim=1)
        return x + resize_clip_pos_embed(self.pos_embed, self.clip_grid, grid), grid

    def forward(self, clip: Tensor) -> Tensor:
        """Normalised clips (B, C, T, H, W) -> map of the last block (B, D, t, h, w)."""
        return self.forward_intermediates(clip, [len(self.blocks) - 1])[0]

    def _load_from_state_dict(self, state_dict, prefix, *args):
        """Bring a position embedding to this model's clips, before the core looks at its size."""
        take_image_tower(state_dict, prefix)
        key = prefix + 'pos_embed'
        loaded = state_dict.get(key)
        if loaded is not None and loaded.ndim == 3:
            kernel = state_dict.get(prefix + 'patch_embed.proj.weight')
            if kernel is not None and kernel.ndim == 4:
                state_dict[key] = repeat_pos_embed(loaded, self.clip_grid)
            elif loaded.shape[1] != self.pos_embed.shape[1]:
                source = self._grid_of(loaded.shape[1] - 1)
                state_dict[key] = resize_clip_pos_embed(loaded, source, self.clip_grid)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _grid_of(self, count: int) -> ClipGrid:
        """Grid of a video checkpoint with so many patches.

        Raises:
            InputError: it cannot be told, or the frames that were named do not fit.
        """
        _, h, w = self.clip_grid
        if self.checkpoint_frames is not None:
            steps = self.checkpoint_frames // self.tubelet_size
            if count % steps:
                raise InputError(
                    f'pos_embed of {count} patches is not one of {steps} steps in time '
                    f'(checkpoint_frames={self.checkpoint_frames})'
                )
            side = square_side(count // steps)
            return steps, side, side
        published = PUBLISHED_IMAGE_SIZE // self.size.patch_size
        if count % (h * w) or ((h, w) != (published, published) and count % published**2 == 0):
            raise InputError(
                f'pos_embed of {count} patches: is it for clips of {h} x {w} patches a frame, as '
                f'this model, or of {published} x {published}? Set checkpoint_frames, the frames '
                f'that the checkpoint is for'
            )
        return count // (h * w), h, w
