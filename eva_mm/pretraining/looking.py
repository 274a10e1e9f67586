"""Pictures of what a pretrained transformer has learnt."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from PIL import Image
from torch import Tensor, nn

from eva_mm.engine.curves import write_figure
from eva_mm.engine.image_data import open_rgb
from eva_mm.engine.inference import choose_model
from eva_mm.engine.launch import load_config
from eva_mm.errors import InputError, UsageError
from eva_mm.vit import EVAVisionTransformer

from .model import PretrainingModel

_PANEL = 3.2  # inches
_HIDDEN = 0.5  # grey of hidden patches
_PERCENTILES = (1, 99)  # of a principal component, drawn as 0 and 1


def open_model(
    name: str,
    device: torch.device | str = 'cpu',
    cfg_options: Mapping[str, Any] | None = None,
) -> tuple[nn.Module, Config]:
    """A model with its weights in evaluation mode, and its config.

    Args:
        name: a published name, or ``CONFIG:CHECKPOINT``.
        device: where to put it.
        cfg_options: dotted key -> value, merged into the config.

    Raises:
        UsageError, InputError: see :func:`eva_mm.engine.inference.choose_model`.
    """
    choice = choose_model(name)
    cfg = load_config(choice.config, cfg_options)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    model = MODELS.build(cfg.model)
    load_checkpoint(model, choice.checkpoint, map_location='cpu')
    return model.to(device).eval(), cfg


def find_transformer(model: nn.Module) -> EVAVisionTransformer:
    """The vision transformer that a model is or contains.

    Raises:
        InputError: it has none.
    """
    for part in model.modules():
        if isinstance(part, EVAVisionTransformer):
            return part
    raise InputError(f'{type(model).__name__} contains no EVA transformer')


def normalise(model: nn.Module, image: Tensor) -> Tensor:
    """uint8 RGB (..., 3, H, W) -> float32, as the model's preprocessor does.

    Raises:
        InputError: the model has no preprocessor that normalises.
    """
    preprocessor = getattr(model, 'data_preprocessor', None)
    mean, std = (getattr(preprocessor, name, None) for name in ('mean', 'std'))
    if not isinstance(mean, Tensor):
        raise InputError(f'{type(model).__name__} has no data_preprocessor with a mean')
    unit = 1 if mean.max() > 1 else 255  # mmdet's and mmseg's are of values up to 255
    return (image.to(mean.device).float() / unit - mean) / std


# ------------------------------------------------------------------------------------- features


@torch.no_grad()
def patch_features(model: nn.Module, image: Image.Image, size: int | None = None) -> Tensor:
    """Patch tokens of a whole image after the transformer's last norm.

    Args:
        model: see :func:`open_model`.
        image: PIL image, RGB.
        size: pixels that its shorter side is resized to (bicubic); by default that of the
            pretraining. Both sides are rounded to whole patches.

    Returns:
        (h, w, D) float32 on the CPU.
    """
    vit = find_transformer(model)
    patch = vit.size.patch_size
    size = size or min(vit.pos_embed_grid) * patch
    factor = size / min(image.size)
    width, height = (max(round(side * factor / patch), 1) * patch for side in image.size)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
    tokens = vit.forward_patch_tokens(normalise(model, tensor))[0]
    return tokens.float().cpu().reshape(height // patch, width // patch, -1)


def principal_colours(features: Sequence[Tensor]) -> list[np.ndarray]:
    """The three directions of largest variance as red, green and blue.

    They are found over all images together, so that a colour means the same in each.

    Args:
        features: maps (h, w, D).

    Returns:
        (h, w, 3) float in [0, 1] each.
    """
    tokens = torch.cat([part.flatten(0, 1) for part in features]).double()
    centred = tokens - tokens.mean(0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    directions = directions[:3]
    # The sign of a direction is arbitrary; this choice makes pictures repeatable.
    peaks = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    values = (centred @ (directions * peaks.sign()).T).numpy()
    low, high = np.percentile(values, _PERCENTILES, axis=0)
    colours = np.clip((values - low) / np.maximum(high - low, 1e-12), 0, 1)
    ends = np.cumsum([part.shape[0] * part.shape[1] for part in features])[:-1]
    parts = np.split(colours, ends)
    return [part.reshape(*f.shape[:2], -1) for part, f in zip(parts, features)]


def draw_features(
    paths: Sequence[str | os.PathLike],
    model: str,
    out: str | os.PathLike,
    size: int | None = None,
    device: str = 'cpu',
    cfg_options: Mapping[str, Any] | None = None,
) -> Path:
    """Draw photos beside the principal components of their patch features.

    Args:
        paths: image files.
        model: see :func:`open_model`; any task's.
        out: PNG to write.
        size: see :func:`patch_features`.
        device: where to compute.
        cfg_options: see :func:`open_model`.

    Returns:
        The file.
    """
    network, _ = open_model(model, device, cfg_options)
    images = [open_rgb(os.fspath(path)) for path in paths]
    colours = principal_colours([patch_features(network, image, size) for image in images])
    if colours[0].shape[-1] < 3:
        raise InputError('fewer than three patches: nothing to compare')
    rows = [
        [(str(Path(path).name), np.asarray(image)), ('patch features', _enlarged(part, image))]
        for path, image, part in zip(paths, images, colours)
    ]
    return _draw(rows, Path(out))


def _enlarged(values: np.ndarray, image: Image.Image) -> np.ndarray:
    """(h, w, 3) in [0, 1] -> uint8 at the image's size; every patch one flat square."""
    small = Image.fromarray((values * 255).round().astype(np.uint8))
    return np.asarray(small.resize(image.size, Image.Resampling.NEAREST))


# --------------------------------------------------------------------------- masked prediction


@torch.no_grad()
def masked_similarity(
    model: PretrainingModel, sample: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Cosine of the angle between predicted and true features of each patch.

    Args:
        model: student with its teacher.
        sample: of the model's pipeline: ``image`` uint8 (3, H, W), ``mask`` or ``noise`` (N,),
            and ``teacher_image`` where the teacher takes another size.

    Returns:
        cosines (h, w) float32, and where patches were to be predicted (h, w) bool.

    Raises:
        InputError: the model predicts no features (codes of a codebook).
    """
    batch = {k: v[None] for k, v in sample.items() if isinstance(v, Tensor)}
    images = {k: normalise(model, batch.pop(k)) for k in ('image', 'teacher_image') if k in batch}
    image = images['image']
    masking = {k: batch[k].to(image.device) for k in ('mask', 'noise') if k in batch}
    prediction, where = model.predict_patches(image, **masking)
    features = model.teacher_features(images.get('teacher_image', image))
    if prediction.shape != features.shape:
        raise InputError(
            f'the model gives {prediction.shape[-1]} numbers per patch and its teacher '
            f'{features.shape[-1]}: expected one that predicts features (CosineRegression)'
        )
    cosines = torch.cosine_similarity(prediction.float(), features, dim=-1)[0]
    grid = model.pos_embed_grid
    return cosines.cpu().numpy().reshape(grid), where[0].bool().cpu().numpy().reshape(grid)


def masked_pipeline(cfg: Config) -> Compose:
    """Crop of the validation with the mask of the training."""
    train = cfg.train_dataloader.dataset.pipeline
    masks = [step for step in train if 'Mask' in step['type']]
    if not masks:
        raise InputError('train_dataloader.dataset.pipeline has no mask (this model hides nothing)')
    steps = []
    for step in cfg.val_dataloader.dataset.pipeline:
        steps += masks if 'Mask' in step['type'] else [step]
    return Compose(steps)


def draw_masked(
    paths: Sequence[str | os.PathLike],
    model: str,
    out: str | os.PathLike,
    seed: int = 0,
    device: str = 'cpu',
    cfg_options: Mapping[str, Any] | None = None,
) -> Path:
    """Draw photos, what the student sees of them, and how well it predicts the rest.

    Args:
        paths: image files.
        model: see :func:`open_model`; a pretraining model.
        out: PNG to write.
        seed: of the masks.
        device: where to compute.
        cfg_options: see :func:`open_model`.

    Returns:
        The file.

    Raises:
        UsageError: the model is none of masked pretraining.
    """
    network, cfg = open_model(model, device, cfg_options)
    if not isinstance(network, PretrainingModel):
        raise UsageError(
            f'--model {model}: {type(network).__name__} is no model of masked pretraining'
        )
    pipeline = masked_pipeline(cfg)
    rows = []
    for number, path in enumerate(paths):
        random.seed(seed + number)
        torch.manual_seed(seed + number)
        sample = pipeline(dict(image=open_rgb(os.fspath(path)), img_path=os.fspath(path)))
        cosines, where = masked_similarity(network, sample)
        photo = sample['image'].permute(1, 2, 0).numpy()
        large = [np.kron(part, np.ones([s // g for s, g in zip(photo.shape, where.shape)]))
                 for part in (where, cosines)]  # fmt: skip
        hidden = large[0].astype(bool)
        seen = np.where(hidden[..., None], _HIDDEN, photo / 255)
        title = f'cosine, {cosines[where].mean():.3f} on average'
        shown = np.ma.masked_array(large[1], ~hidden)
        rows.append([(Path(path).name, photo), ('seen', seen), (title, shown)])
    return _draw(rows, Path(out))


def _draw(rows: Sequence[Sequence[tuple[str, np.ndarray]]], out: Path) -> Path:
    """Rows of titled pictures; two-dimensional ones are similarities, in colours from 0 to 1."""
    # Through the class, not pyplot, which would ask for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = len(rows[0])
    figure = Figure(figsize=(_PANEL * columns, _PANEL * len(rows)), layout='constrained')
    FigureCanvasAgg(figure)
    scale = None
    panels = figure.subplots(len(rows), columns, squeeze=False)
    for axes_of_row, row in zip(panels, rows):
        for axes, (title, picture) in zip(axes_of_row, row):
            axes.set_axis_off()
            axes.set_title(title, fontsize='small')
            if picture.ndim == 3:
                axes.imshow(picture)
            else:
                scale = axes.imshow(picture, vmin=0, vmax=1, cmap='viridis')
    if scale is not None:
        figure.colorbar(scale, ax=panels[:, -1].tolist(), label='cosine similarity')
    return write_figure(figure, out)
