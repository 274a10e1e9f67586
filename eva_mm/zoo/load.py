"""Published models as plain torch modules, with their preprocessing and without a config."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import eva_mm
from eva_mm.errors import InputError, MissingFileError
from eva_mm.vit import EVAVisionTransformer

from .download import cached_file
from .files import read_weights
from .table import CORE_KINDS, PublishedModel, find_model
from .timm_names import LINEAR_PROBE_EPS, OPEN_CLIP_MODEL, encoder, image_tower, to_timm

# OpenAI's CLIP, whose normalisation all of EVA's pretraining and classification uses.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

Preprocess = Callable[[Any], Tensor]
_SUFFIXES = ('.pt', '.pth', '.bin', '.safetensors')
# Kinds that need a framework's data pipeline and heads, and what builds them.
_FRAMEWORKS = {
    'detector': 'mmdet.apis.init_detector',
    'segmentor': 'mmseg.apis.init_model',
    'video': 'mmaction.apis.init_recognizer',
}


def load_model(
    name: str | os.PathLike,
    checkpoint: str | os.PathLike | None = None,
    *,
    device: torch.device | str = 'cpu',
    dtype: torch.dtype | None = torch.float32,
    num_classes: int | None = None,
) -> tuple[nn.Module, Preprocess]:
    """A published model in evaluation mode, and the preprocessing it was evaluated with.

    What ``module(image)`` gives, for ``image`` (B, 3, H, W) made by ``preprocess``:

    - classifiers and linear probes: logits (B, classes);
    - ``eva_clip_vision_enc``: CLIP's image embedding (B, 1024), not normalised, or the class
      token's feature (B, D) where the file has no projection;
    - ``eva_psz14``, ``eva_psz14to16``, ``eva_l_psz14`` (masked pretraining): the final norm of the
      mean patch token, (B, D). Pretraining teaches the patch tokens, not the class token;
      ``module.forward_patch_tokens(image)`` gives each of them normalised, (B, h * w, D);
    - ``eva_clip``: the module is open_clip's, with ``encode_image`` and ``encode_text``; its
      tokeniser is ``open_clip.get_tokenizer('EVA01-g-14')``.

    All but the last are :class:`~eva_mm.vit.EVAVisionTransformer`, with its features of other
    blocks and image sizes.

    Args:
        name: published name, with or without ``eva://``, or the path of a published file that
            still has its own name.
        checkpoint: a file to load instead of the published one, e.g. a fine-tuned model; ``name``
            tells its architecture then. The number of classes is the file's.
        device: where to put the model.
        dtype: of the weights; None takes that of most of the file's, which is fp16 for pretraining
            and CLIP.
        num_classes: 0 takes the head off, so that the module gives pooled features (B, D);
            another number than the file's puts a fresh head on.

    Returns:
        (module, preprocess); ``preprocess`` turns a PIL image into a float32 tensor (3, H, W).

    Raises:
        InputError: unknown name, a detector, segmentor or video model, a file that does not fit,
            or open_clip is needed and missing. What downloading raises: see
            :func:`~eva_mm.zoo.download.cached_file`.
    """
    row, path = _resolve(name, checkpoint)
    _require_module(row)
    clip = _open_clip_model(num_classes) if row.kind == 'clip' else None  # before a long download
    path = path or cached_file(row.name, download=True)
    weights, _ = read_weights(path)
    dtype = dtype or _usual_dtype(weights)
    if clip is not None:
        module, weights = clip, to_timm(weights, 'clip')
    else:
        module, weights = _transformer(row, weights, num_classes)
    _assign(module, weights, device, dtype, f'{path} does not fit {row.name}')
    if clip is not None:
        _make_buffers(module, device)
    elif num_classes and isinstance(module.head, nn.Identity):
        module.head = _fresh_head(module.size.embed_dim, num_classes)
    return module.to(device=device, dtype=dtype).eval(), _preprocess_of(row)


def _require_module(row: PublishedModel) -> None:
    """Refuse what is no torch module on its own, and tell the way."""
    if row.kind in _FRAMEWORKS:
        config = row.test_config or row.config or ''
        built = (eva_mm.resource_dir('configs').parent / config).is_file()
        way = f"{_FRAMEWORKS[row.kind]}({config!r}, 'eva://{row.name}')"
        raise InputError(
            f'{row.name} (kind: {row.kind}) is no module without a config: '
            + (f'build it by {way}' if built else f'its config, {config}, is not in this version')
        )
    if row.kind not in CORE_KINDS:
        raise InputError(f'{row.name} ({row.file}) holds no weights, expected a model')


def _resolve(
    name: str | os.PathLike, checkpoint: str | os.PathLike | None
) -> tuple[PublishedModel, Path | None]:
    """Row of the table, and the file to read where the published one is not meant."""
    name = os.fspath(name)
    if checkpoint is None and _is_path(name):
        checkpoint = name
        try:
            row = find_model(Path(name).name)
        except InputError as error:
            raise InputError(
                f'{name} has not the name of a published file, so its architecture is unknown: '
                f"load_model('eva_21k_1k_336px', checkpoint={name!r}), say"
            ) from error
    else:
        row = find_model(name)
    if checkpoint is None:
        return row, None
    checkpoint = Path(checkpoint).expanduser()
    if not checkpoint.exists():
        raise MissingFileError(f'checkpoint {checkpoint} does not exist')
    return row, checkpoint


def _is_path(name: str) -> bool:
    if '://' in name:
        return False
    return os.sep in name or (name.endswith(_SUFFIXES) and os.path.exists(name))


def _usual_dtype(weights: Mapping[str, Tensor]) -> torch.dtype:
    """Of most floating-point numbers: ``eva_psz14to16.pt`` is fp16 but for its patch kernel."""
    counts: dict[torch.dtype, int] = {}
    for tensor in weights.values():
        if tensor.is_floating_point():
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
    return max(counts, key=counts.get, default=torch.float32)


# ------------------------------------------------------------------------------ construction


def _transformer(
    row: PublishedModel, weights: dict[str, Tensor], num_classes: int | None
) -> tuple[EVAVisionTransformer, dict[str, Tensor]]:
    """The model without memory behind its parameters, and the weights it is to take."""
    weights = image_tower(weights)
    arguments = dict(row.model)
    if row.kind in ('mim', 'mae'):
        weights = _pooled_encoder(weights)
        arguments['pooling'] = 'mean'
    probe = 'head.1.weight' in weights
    head = weights.get('head.1.weight' if probe else 'head.weight')
    classes = 0 if head is None else len(head)
    if num_classes not in (None, classes):
        weights = {k: v for k, v in weights.items() if not k.startswith('head.')}
        classes, probe = 0, False
    arguments['num_classes'] = classes
    with torch.device('meta'):
        module = EVAVisionTransformer(**arguments)
        if probe:
            module.head = _linear_probe(module.size.embed_dim, classes)
    return module, weights


def _pooled_encoder(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A pretrained encoder whose final norm comes after pooling.

    Patch tokens after it are the same either way, and the mean of them gets the norm it would be
    fine-tuned with. timm does the same on loading (``checkpoint_filter_fn`` of timm/models/eva.py).
    """
    weights = encoder(weights)
    return {f'fc_{k}' if k.startswith('norm.') else k: v for k, v in weights.items()}


def _linear_probe(dim: int, classes: int) -> nn.Sequential:
    """Head of a linear probe (EVA-01/eva/run_class_finetuning.py)."""
    norm = nn.BatchNorm1d(dim, affine=False, eps=LINEAR_PROBE_EPS)
    return nn.Sequential(norm, nn.Linear(dim, classes))


def _fresh_head(dim: int, classes: int) -> nn.Linear:
    """A head as fine-tuning starts from: see :meth:`EVAVisionTransformer.reset_parameters`."""
    head = nn.Linear(dim, classes)
    nn.init.trunc_normal_(head.weight, std=0.02 * 0.001)
    nn.init.zeros_(head.bias)
    return head


def _open_clip_model(num_classes: int | None) -> nn.Module:
    """open_clip's EVA-CLIP without memory behind its parameters."""
    if num_classes is not None:
        raise InputError('eva_clip has no classes; load eva_clip_vision_enc for its image tower')
    try:
        import open_clip
    except ImportError as error:
        raise InputError(
            'eva_clip needs open_clip (pip install open_clip_torch); eva_clip_vision_enc, its '
            'image tower alone, does not'
        ) from error
    config = open_clip.get_model_config(OPEN_CLIP_MODEL)
    config.pop('custom_text', None)
    with torch.device('meta'):
        return open_clip.CustomTextCLIP(**config)


def _make_buffers(module: nn.Module, device: torch.device | str) -> None:
    """Buffers that no checkpoint holds: timm's zero key biases, open_clip's causal mask."""
    for part in module.modules():
        for name, buffer in list(part.named_buffers(recurse=False)):
            if not buffer.is_meta:
                continue
            if name == 'attn_mask':
                value = part.build_causal_mask().to(device)
            elif name == 'k_bias':
                value = torch.zeros_like(buffer, device=device)
            else:
                raise RuntimeError(f'{type(part).__name__}.{name}: no rule to make this buffer')
            part.register_buffer(name, value, persistent=False)


def _assign(
    module: nn.Module,
    weights: Mapping[str, Tensor],
    device: torch.device | str,
    dtype: torch.dtype,
    refusal: str,
) -> None:
    """Put the weights into a module of the meta device.

    They are copied one by one out of the mapped file, since a model whose memory *is* the file
    would break when the file is overwritten.

    Raises:
        InputError: names or shapes differ; begins with ``refusal``.
    """
    copied = {
        key: value.to(device, dtype if value.is_floating_point() else None, copy=True)
        for key, value in weights.items()
    }
    try:
        keys = module.load_state_dict(copied, strict=False, assign=True)
    except RuntimeError as error:  # shapes
        raise InputError(f'{refusal}: {" ".join(str(error).split())[:1000]}') from error
    differences = [
        f'{title} {_some(names)}'
        for title, names in (
            ('the file lacks', keys.missing_keys),
            ('the model does not know', keys.unexpected_keys),
        )
        if names
    ]
    if differences:
        raise InputError(f'{refusal}: {"; ".join(differences)}')


def _some(names: Sequence[str], shown: int = 4) -> str:
    text = ', '.join(names[:shown])
    return text if len(names) <= shown else f'{text} and {len(names) - shown} more'


# ----------------------------------------------------------------------------- preprocessing


def make_preprocess(
    size: int,
    crop_pct: float = 1.0,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
    interpolation: str = 'bicubic',
) -> Preprocess:
    """EVA's preprocessing in evaluation (EVA-01/eva/datasets.py).

    Args:
        size: side of the square image in pixels that the model gets.
        crop_pct: the shorter side is resized to ``int(size / crop_pct)``, then the centre cropped.
        mean, std: per RGB channel, of values in [0, 1].
        interpolation: of torchvision's ``InterpolationMode``.

    Returns:
        PIL image of any mode and size -> float32 tensor (3, size, size).
    """
    from torchvision import transforms

    mode = transforms.InterpolationMode(interpolation)
    return transforms.Compose(
        [
            _to_rgb,
            transforms.Resize(int(size / crop_pct), interpolation=mode),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )


def _to_rgb(image: Any) -> Any:
    return image.convert('RGB')


def _preprocess_of(row: PublishedModel) -> Preprocess:
    """As published; pretrained models that were only validated get that size's usual crop."""
    if row.preprocessing:
        return make_preprocess(**row.preprocessing)
    size = row.model.get('img_size', 224)
    return make_preprocess(size, crop_pct=224 / 256 if size < 384 else 1.0)
