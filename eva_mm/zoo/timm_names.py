"""Names of timm and open_clip against the published ones.

timm's ``eva_giant_patch14_*`` and ``eva_large_patch14_*`` keep the published names, parameter by
parameter, and so does the core: such a state dict goes either way as it is. Names differ in CLIP
models alone. The authors' EVA-CLIP (EVA-01/clip/eva_model.py) keeps its image tower under
``visual.`` and the temperature under ``text.logit_scale``; open_clip's ``EVA01-g-14`` wraps
timm's model as ``visual.trunk.`` and has ``logit_scale`` at the top. Both text towers are
open_clip's ``TextTransformer``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from eva_mm.errors import InputError
from eva_mm.vit import take_image_tower

from .keys import PRETRAINING_PARTS, KeyTable

OPEN_CLIP_MODEL = 'EVA01-g-14'
"""EVA-CLIP in open_clip's list of model configurations."""

LINEAR_PROBE_EPS = 1e-6
"""Of the normalisation in front of a linear probe (EVA-01/eva/run_class_finetuning.py)."""

# Names in open_clip, names here (which are the published ones).
OPEN_CLIP_KEYS = KeyTable(('visual.trunk.', 'visual.'), ('logit_scale', 'text.logit_scale'))

_SAME_NAMES = ('classifier', 'clip_vision')


def is_timm(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether names are timm's or open_clip's *and* differ from the published ones.

    False for timm's state dict of a bare EVA or EVA-L, which has the published names.
    """
    return any(name.startswith(('visual.trunk.', 'trunk.')) for name in state_dict)


def image_tower(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image tower of a CLIP model under the core's names; any other state dict is copied.

    Args:
        state_dict: of the authors' EVA-CLIP (``visual.``), of open_clip's (``visual.trunk.``), or
            of open_clip's tower alone (``trunk.``).
    """
    tower = dict(state_dict)
    take_image_tower(tower, '')
    return tower


def encoder(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what masked pretraining has beside the encoder: mask token, decoder, predictor."""
    return {k: v for k, v in state_dict.items() if not k.startswith(PRETRAINING_PARTS)}


def from_timm(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of timm or open_clip -> published names, which are those here.

    Args:
        state_dict: of a timm EVA or EVA-L; of open_clip's EVA-CLIP with both towers; or of its
            image tower alone (``visual.trunk.`` or ``trunk.``), which comes back without a prefix.
    """
    if not is_timm(state_dict):
        return dict(state_dict)
    if all(name.startswith(('visual.trunk.', 'trunk.')) for name in state_dict):
        return image_tower(state_dict)
    return OPEN_CLIP_KEYS.to_mm(state_dict)


def to_timm(state_dict: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Published names -> names of timm, or of open_clip where both towers are given.

    What each kind fits, strictly:

    - ``classifier``: ``eva_giant_patch14_*`` and ``eva_large_patch14_*``, unchanged;
    - ``clip_vision``: ``eva_giant_patch14_clip_224``, unchanged;
    - ``mim``, ``mae``: those with ``num_classes=0, global_pool='token'``, as encoder with its
      final ``norm``; what pretraining has beside it is left out;
    - ``linear``: ``eva_giant_patch14_*`` with ``global_pool='token'``; the head is folded;
    - ``clip``: open_clip's ``EVA01-g-14``.

    The head of a linear probe is a normalisation without affine weights and a linear layer; timm
    has a linear layer alone, into which the running statistics are folded, exact in evaluation.

    Args:
        state_dict: published names (or timm's already).
        kind: kind of the published model, as in :class:`eva_mm.zoo.table.PublishedModel`.

    Raises:
        InputError: timm and open_clip have no model of that kind.
    """
    if kind == 'clip':
        return dict(state_dict) if is_timm(state_dict) else OPEN_CLIP_KEYS.to_official(state_dict)
    if kind in _SAME_NAMES:
        return image_tower(state_dict)
    if kind in ('mim', 'mae'):
        return encoder(state_dict)
    if kind == 'linear':
        return fold_linear_probe(state_dict)
    known = sorted((*_SAME_NAMES, 'clip', 'linear', 'mae', 'mim'))
    raise InputError(f'timm has no EVA model of kind {kind!r}, expected one of {known}')


def fold_linear_probe(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``head.0`` (BatchNorm without affine weights) and ``head.1`` (linear) as one ``head``.

    Computed in float64 and given in the dtype of ``head.1``. A head that is one linear layer
    stays.
    """
    if 'head.1.weight' not in state_dict:
        return dict(state_dict)
    rest = {k: v for k, v in state_dict.items() if not k.startswith('head.')}
    weight, bias = state_dict['head.1.weight'], state_dict['head.1.bias']
    mean = state_dict['head.0.running_mean'].double()
    scaled = weight.double() * torch.rsqrt(
        state_dict['head.0.running_var'].double() + LINEAR_PROBE_EPS
    )
    shifted = bias.double() - scaled @ mean
    return {**rest, 'head.weight': scaled.to(weight.dtype), 'head.bias': shifted.to(bias.dtype)}
