"""CLIP as a teacher: its patch tokens are what the student learns to predict.

Published: OpenAI's ViT-L/14 for EVA (EVA-01/eva/clip/model.py, where ``encode_image`` returns the
patch tokens after ``ln_post`` and the projection, not normalised), EVA-CLIP for EVA-L.

Shape letters: B batch, N patches (row-major), D the teacher's output width.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import open_clip
import torch
from mmengine.logging import print_log
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.model import _build_vision_tower
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from eva_mm.engine.checkpoint import safe_load
from eva_mm.errors import InputError, MissingFileError
from eva_mm.resize import resize_pos_embed, square_side

Grid = tuple[int, int]
# Position embeddings in open_clip's own transformer and in timm's.
_POSITIONS = ('positional_embedding', 'trunk.pos_embed')
_SUFFIXES = ('.pt', '.pth', '.bin', '.safetensors')


class OutsideWeights(NamedTuple):
    """Weights that a model needs beside its own, as a dry run tells of them.

    Attributes:
        source: file, address or name.
        state: where they are; begins with 'missing' if they cannot be had.
        num_bytes: they take on the device.
    """

    source: str
    state: str
    num_bytes: int


@MODELS.register_module()
class CLIPTeacher(nn.Module):
    """Image tower of a CLIP model, frozen and always in evaluation mode.

    Constructing it takes no memory and reads no file, so that models can be built on the meta
    device. Weights are read by :meth:`load`, at the latest in the first forward pass. They are
    fp32; the precision of the computation is that of the caller's autocast.

    Args:
        model: a name of ``open_clip.list_models()`` or the arguments of ``open_clip.model.CLIP``
            as a dictionary (``embed_dim``, ``vision_cfg``, ``quick_gelu``; the text tower is not
            built). Towers: open_clip's own transformers, and timm's vision transformers. OpenAI's
            weights in a local file need a name that ends in ``-quickgelu``; their tag brings it.
        weights: a tag of open_clip ('openai'), a file (of the whole model or the tower alone,
            OpenAI's or open_clip's names; EVA-CLIP's too), an address like ``eva://eva_clip``, or
            None for random ones, the same in every process.
        image_size: side in pixels, where another than the model's is wanted; open_clip's own
            transformers only.
        cache_dir: where open_clip keeps downloads; its own choice by default.

    Attributes:
        feature_dim: D.
        image_size: (height, width) of the images it takes, in pixels.
        grid: (h, w) in patches.

    Raises:
        InputError: unknown model or tag (near names are told), or a tower without patch tokens.
    """

    def __init__(
        self,
        model: str | Mapping[str, Any] = 'ViT-L-14',
        weights: str | None = 'openai',
        image_size: int | None = None,
        cache_dir: str | None = None,
    ):
        super().__init__()
        self.name = model if isinstance(model, str) else 'CLIP'
        self.config = _tower_config(model, weights, image_size)
        self.weights = weights
        self.cache_dir = cache_dir
        self.tower: nn.Module | None = None
        if weights is not None and not self._tag and not _is_path(weights):
            tags = open_clip.list_pretrained_tags_by_model(self.name) if self._is_listed else []
            raise InputError(
                f'weights {weights!r} of the teacher {self.name} are neither a file nor one of '
                f"open_clip's: {', '.join(tags) or 'none for this model'}"
            )
        # Outside of the fake tensors by which a dry run measures memory: timm reads numbers back.
        with unset_fake_temporarily(), torch.device('meta'):
            tower = self._build()
        _require_patch_tokens(tower, self.name)
        self.feature_dim = self.config['embed_dim']
        self.image_size, self.grid = _sizes(tower)
        self.num_bytes = 4 * sum(p.numel() for p in tower.parameters())
        self.eval()

    @property
    def _is_listed(self) -> bool:
        return self.name in open_clip.list_models()

    @property
    def _tag(self) -> dict:
        """What open_clip knows of the tag; empty for anything else."""
        if self.weights is None or not self._is_listed:
            return {}
        return open_clip.get_pretrained_cfg(self.name, self.weights)

    def _build(self) -> nn.Module:
        return _build_vision_tower(**copy.deepcopy(self.config))

    def __deepcopy__(self, memo: dict) -> CLIPTeacher:
        """Copies of a student (averages of weights, say) share the frozen teacher."""
        return self

    def train(self, mode: bool = True) -> CLIPTeacher:
        """Stays in evaluation mode."""
        return super().train(False)

    # ------------------------------------------------------------------------------- weights

    def load(self, device: torch.device | str = 'cpu') -> None:
        """Read the weights, once, and put them on a device.

        Raises:
            InputError: a file is missing, cannot be read or fetched, or fits another model.
        """
        if self.tower is not None:
            return
        tower = self._random() if self.weights is None else self._read()
        self.tower = tower.float().requires_grad_(False).eval().to(device)

    def _random(self) -> nn.Module:
        print_log(f'the teacher {self.name} has random weights', 'current', level=30)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self._build()

    def _read(self) -> nn.Module:
        source, state = self._state_dict()
        with torch.device('meta'):
            tower = self._build()
        state = self._fitted(state, tower, source)
        tower.load_state_dict(state, assign=True)
        if any(t.is_meta for t in (*tower.parameters(), *tower.buffers())):
            tower = self._build()  # has tensors that no checkpoint holds, which are computed
            tower.load_state_dict(state)
        return tower

    def _state_dict(self) -> tuple[str, dict[str, Tensor]]:
        """Where the weights lie, and all of the file's tensors."""
        if '://' in self.weights:
            checkpoint = CheckpointLoader.load_checkpoint(self.weights, 'cpu')
            return self.weights, checkpoint.get('state_dict', checkpoint)
        file = self._download() if self._tag else self.weights
        if not os.path.exists(file):
            raise MissingFileError(f'weights of the teacher {self.name}: no file {file}')
        _refuse_torchscript(file)
        if not self._tag:
            self._warn_of_gelu(file)
        checkpoint = safe_load(file, 'cpu')
        return file, checkpoint.get('state_dict', checkpoint)

    def _download(self) -> str:
        tag = self._tag
        if (tuple(tag['mean']), tuple(tag['std'])) != (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD):
            print_log(
                f'{self.name} {self.weights} expects images normalised by mean {tag["mean"]} and '
                f'std {tag["std"]}: data_preprocessor has to have these',
                'current',
                level=30,
            )
        try:
            return open_clip.download_pretrained(tag, cache_dir=self.cache_dir)
        except Exception as error:  # of the network, in as many kinds as there are libraries
            raise MissingFileError(
                f'weights {self.weights!r} of the teacher {self.name} could not be fetched: '
                f'{error}. Without a network, name a local file: model.teacher.weights=FILE'
            ) from error

    def _warn_of_gelu(self, file: str) -> None:
        """A file does not tell which GELU its weights were trained with."""
        openai = self._is_listed and open_clip.get_pretrained_cfg(self.name, 'openai')
        if openai and openai['quick_gelu'] != self.config['quick_gelu']:
            print_log(
                f'{file} is used with the GELU of {self.name}; if these are weights of OpenAI, the '
                f'teacher has to be {self.name}-quickgelu',
                'current',
                level=30,
            )

    def _fitted(self, state: Mapping[str, Any], tower: nn.Module, source: str) -> dict[str, Tensor]:
        """The tower's part of a state dict under the tower's names, at its size."""
        own = tower.state_dict()
        found = _find_tower(state, list(own))
        missing = [name for name in own if name not in found]
        if missing:
            raise InputError(
                f'{source} does not hold the image tower of {self.name}: {len(missing)} of '
                f'{len(own)} parameters are missing, first {missing[0]}'
            )
        for name in _POSITIONS:
            if name in found and found[name].shape != own[name].shape:
                found[name] = _resized(found[name], own[name], self.grid)
        for name, value in found.items():
            if value.shape != own[name].shape:
                raise InputError(
                    f'{source} does not fit the teacher {self.name}: {name} is '
                    f'{tuple(value.shape)}, expected {tuple(own[name].shape)}'
                )
        return found

    def outside_weights(self) -> OutsideWeights:
        """Tell of the weights without reading them."""
        source = f'teacher {self.name}, {self.weights or "random weights"}'
        if self.weights is None:
            state = 'made by a fixed seed'
        elif self._tag or '://' in self.weights:
            state = 'will be downloaded unless it is in the cache'
        else:
            state = 'found' if os.path.exists(self.weights) else 'missing'
        return OutsideWeights(source, state, self.num_bytes)

    def digest(self) -> str:
        """SHA-256 of architecture and weights (which are read if they were not yet)."""
        self.load()
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True, default=str).encode())
        for name, value in sorted(self.tower.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    # ------------------------------------------------------------------------------- forward

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Patch tokens in CLIP's space.

        Args:
            image: (B, 3, H, W), normalised as CLIP's.

        Returns:
            (B, N, D) float32, row-major, not of unit length.

        Raises:
            InputError: images of another size.
        """
        if tuple(image.shape[-2:]) != self.image_size:
            raise InputError(
                f'the teacher {self.name} takes images of {_times(self.image_size)} px, got '
                f'{_times(image.shape[-2:])}'
            )
        self.load(image.device)
        tower = self.tower
        tokens = tower.forward_intermediates(
            image.to(next(tower.parameters()).dtype),  # callers may cast their inputs
            indices=1,
            normalize_intermediates=True,
            intermediates_only=True,
            output_fmt='NLC',
        )['image_intermediates'][0]
        if hasattr(tower, 'trunk'):
            # timm: whichever of these the class token or the mean goes through.
            for part in (getattr(tower.trunk, 'fc_norm', None), tower.trunk.head, tower.head):
                tokens = tokens if part is None else part(tokens)
        elif tower.proj is not None:
            tokens = tokens @ tower.proj
        return tokens.float()


class Taught:
    """Mixin of students: holds a :class:`CLIPTeacher` that is no part of the student.

    The teacher is in neither ``parameters()`` nor ``state_dict()``, so that no optimizer,
    checkpoint or wrapper for several GPUs sees it; it moves to other devices with the student.
    Stands before ``EVAVisionTransformer`` in the bases.

    Args:
        teacher: config of a :class:`CLIPTeacher`, or a built one.

    Raises:
        InputError: the teacher divides its image into another grid than the student.
    """

    teacher: CLIPTeacher

    def __init__(self, *args: Any, teacher: Mapping[str, Any] | CLIPTeacher, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # Not by attribute, which would make it a submodule.
        self.__dict__['teacher'] = MODELS.build(teacher) if isinstance(teacher, dict) else teacher
        self.feature_cache = None
        own, theirs = self.pos_embed_grid, self.teacher.grid
        if own != theirs:
            patch = self.size.patch_size
            pixels = tuple(side * patch for side in own)
            raise InputError(
                f'student and teacher divide images into different grids: the student has '
                f'{_times(own)} patches ({_times(pixels)} px, patches of {patch} px), the teacher '
                f'{self.teacher.name} {_times(theirs)} ({_times(self.teacher.image_size)} px). '
                f'Change model.img_size or model.teacher.image_size'
            )

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """``.to()``, ``.cuda()`` and the like reach the teacher as well."""
        result = super()._apply(fn, recurse)
        self.teacher._apply(fn, recurse)
        return result

    def init_weights(self) -> None:
        """Read the teacher's weights too, so that what is missing is told before training."""
        super().init_weights()
        device = self.pos_embed.device
        if device.type != 'meta':
            self.teacher.load(device)

    def outside_weights(self) -> Iterator[OutsideWeights]:
        """What a dry run tells of."""
        yield self.teacher.outside_weights()

    @torch.compiler.disable  # reads files
    def teacher_features(self, image: Tensor, cache_slot: Tensor | None = None) -> Tensor:
        """The teacher's patch tokens (B, N, D), from the cache if there is one.

        Args:
            image: (B, 3, H, W) for the teacher, normalised.
            cache_slot: (B,) int64, one number per image and view; None passes the cache by.
        """
        if self.feature_cache is None or cache_slot is None:
            return self.teacher(image)
        return self.feature_cache.fetch(cache_slot, image, self.teacher)


def _times(size: Any) -> str:
    return ' x '.join(str(int(side)) for side in size)


def _is_path(weights: str) -> bool:
    return '://' in weights or os.sep in weights or weights.endswith(_SUFFIXES)


def _refuse_torchscript(file: str) -> None:
    """Tell the way to the weights of an archive that holds code beside them.

    Raises:
        InputError: it is one.
    """
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
    if any(name.endswith('/constants.pkl') for name in names):
        raise InputError(
            f'{file} is a TorchScript archive, as OpenAI gave its models out: code, which is not '
            f"run here. weights='openai' fetches the same weights; or, if you trust the file, "
            f"torch.save(torch.jit.load({file!r}, 'cpu').state_dict(), 'weights.pt')"
        )


def _tower_config(
    model: str | Mapping[str, Any], weights: str | None, image_size: int | None
) -> dict[str, Any]:
    """Arguments of the image tower's constructor."""
    if isinstance(model, str):
        config = open_clip.get_model_config(model) if model in open_clip.list_models() else None
        if config is None:
            near = difflib.get_close_matches(model, open_clip.list_models(), n=5, cutoff=0.4)
            raise InputError(
                f'the teacher {model!r} is no model of open_clip; near: {", ".join(near)}'
            )
        # OpenAI's weights were trained with another GELU than the config of the same name says.
        tag = open_clip.get_pretrained_cfg(model, weights) if weights else {}
        config = dict(config, quick_gelu=tag.get('quick_gelu', config.get('quick_gelu', False)))
    else:
        config = copy.deepcopy(dict(model))
        for key in ('embed_dim', 'vision_cfg'):
            if key not in config:
                raise InputError(f'model.teacher.model lacks the key {key!r}, has {sorted(config)}')
    vision = dict(config['vision_cfg'])
    if image_size is not None:
        if vision.get('timm_model_name'):
            raise InputError(f'image_size={image_size}: the tower of {model} has a fixed size')
        vision['image_size'] = image_size
    if vision.get('timm_model_name'):
        vision['timm_model_pretrained'] = False
    return dict(
        embed_dim=config['embed_dim'],
        vision_cfg=vision,
        quick_gelu=config.get('quick_gelu', False),
    )


def _require_patch_tokens(tower: nn.Module, name: str) -> None:
    """Refuse ResNets, and transformers whose pooling is what leads into CLIP's space."""
    trunk = getattr(tower, 'trunk', None)
    if trunk is None:
        fits = hasattr(tower, 'ln_post') and getattr(tower, 'attn_pool', None) is None
    else:
        pools = any('pool' in part for part, _ in tower.head.named_children())
        pools = pools or getattr(trunk, 'attn_pool', None) is not None
        fits = hasattr(getattr(trunk, 'patch_embed', None), 'grid_size') and not pools
    if not fits:
        raise InputError(
            f'the teacher {name} has no patch tokens in the space of its embedding, expected a '
            f'vision transformer without attention pooling'
        )


def _sizes(tower: nn.Module) -> tuple[tuple[int, int], Grid]:
    """Image size in pixels and grid in patches."""
    if hasattr(tower, 'trunk'):
        embed = tower.trunk.patch_embed
        return tuple(embed.img_size), tuple(embed.grid_size)
    return tuple(tower.image_size), tuple(tower.grid_size)


def _find_tower(state: Mapping[str, Any], own: list[str]) -> dict[str, Tensor]:
    """The entries of a state dict that are the tower's, whatever stands before their names.

    timm's towers have ``trunk.`` in open_clip, and not in the authors' EVA-CLIP.
    """
    best: dict[str, Tensor] = {}
    for inner in ('', 'trunk.'):
        first = own[0].removeprefix(inner)
        starts = {k[: -len(first)] for k in state if k == first or k.endswith('.' + first)}
        for start in sorted(starts, key=len):
            names = {name: start + name.removeprefix(inner) for name in own}
            found = {name: state[key] for name, key in names.items() if key in state}
            best = found if len(found) > len(best) else best
    return best


def _resized(table: Tensor, own: Tensor, grid: Grid) -> Tensor:
    """A position embedding (1 + N, D) or (1, 1 + N, D) for another grid."""
    batched = table.reshape(1, *table.shape[-2:]).float()
    side = square_side(batched.shape[1] - 1)
    return resize_pos_embed(batched, grid, 1, (side, side)).reshape(own.shape)
