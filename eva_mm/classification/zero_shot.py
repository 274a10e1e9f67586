"""EVA-CLIP as a classifier of any class names, without training.

Source: github.com/baaivision/EVA, EVA-01/clip (README.md, eva_clip.py); the model, the tokeniser,
the prompts and ImageNet's class names are open_clip's.

Shape letters: B batch, K classes, D width of the space that images and texts share.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from eva_mm.engine.checkpoint import safe_load
from eva_mm.engine.strict_loading import StrictLoading
from eva_mm.errors import InputError, MissingFileError

from .datasets import read_classes

try:
    import open_clip
except ImportError as error:
    raise InputError('EVA-CLIP needs open_clip: pip install open_clip_torch==3.3.0') from error

OPEN_CLIP_SCHEME = 'open_clip://'
_CLASSES_AT_ONCE = 10  # each with all prompts, 80 of them for ImageNet
_OWN = 'clip.'

Template = str | Callable[[str], str]


@MODELS.register_module()
class EVACLIPZeroShot(StrictLoading, BaseModel):
    """Zero-shot classifier: logits are scaled cosines of an image and the texts of each class.

    A class's feature is the normalised mean of its prompts' normalised features. These are
    computed before the first image, and again after :meth:`set_classes` or loading weights.
    Weights may have the published names (``eva://eva_clip``) or open_clip's.

    Args:
        model: a name of ``open_clip.list_models()``, or the arguments of
            ``open_clip.model.CLIP`` as a dictionary.
        classes: K names; 'imagenet-1k' for those of CLIP's authors in the order of WordNet ids,
            or a text file with a name per line.
        templates: prompts with ``{}`` for a name; 'openai' for the 80 of CLIP's authors.
        logit_scale: published: 100, fixed.
        data_preprocessor: see :class:`ClassificationDataPreprocessor`, which is the default.
        init_cfg: of mmengine.
        **kwargs: see :class:`~eva_mm.engine.strict_loading.StrictLoading`.

    Raises:
        InputError: unknown model (near names are told), no classes or templates, or a template
            without ``{}``.
    """

    def __init__(
        self,
        model: str | Mapping[str, Any] = 'EVA01-g-14',
        *,
        classes: str | Sequence[str] = 'imagenet-1k',
        templates: str | Sequence[Template] = 'openai',
        logit_scale: float = 100.0,
        data_preprocessor: dict | nn.Module | None = None,
        init_cfg: dict | None = None,
        **kwargs: Any,
    ):
        super().__init__(
            data_preprocessor=data_preprocessor or dict(type='ClassificationDataPreprocessor'),
            init_cfg=init_cfg,
            **kwargs,
        )
        self.clip, self.tokenizer = _build(model)
        self.logit_scale = logit_scale
        self.set_classes(classes, templates)

    def set_classes(
        self,
        classes: str | Sequence[str],
        templates: str | Sequence[Template] | None = None,
    ) -> None:
        """Choose other classes, and other templates unless they are None; see the class."""
        self.classes = _class_texts(classes)
        if templates is not None:
            self.templates = _templates(templates)
        self._class_features: Tensor | None = None

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes)

    def has_initial_weights(self) -> bool:
        """Nothing is trained here, so a checkpoint may lack nothing."""
        return False

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        """Take the published names and open_clip's."""
        self._class_features = None
        own = set(self.clip.state_dict())
        for key in [key for key in state_dict if key.startswith(prefix)]:
            name = key[len(prefix) :]
            if not name.startswith(_OWN) and (ours := _own_name(name, own)):
                state_dict[f'{prefix}{_OWN}{ours}'] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @torch.no_grad()
    def class_features(self) -> Tensor:
        """Normalised text features of the classes, (D, K)."""
        device = next(self.clip.parameters()).device
        if self._class_features is None:
            self._class_features = open_clip.build_zero_shot_classifier(
                self.clip,
                self.tokenizer,
                self.classes,
                self.templates,
                num_classes_per_batch=_CLASSES_AT_ONCE,
                device=device,
            )
        self._class_features = self._class_features.to(device)
        return self._class_features

    def forward(
        self,
        image: Tensor,
        label: Tensor | None = None,
        mode: str = 'tensor',
        img_path: list[str] | None = None,
    ) -> Tensor | list[dict]:
        """Run the model as mmengine's test loop asks for.

        Args:
            image: (B, 3, H, W), normalised.
            label: class numbers (B,).
            mode: 'tensor' or 'predict'.
            img_path: of each image.

        Returns:
            'tensor': logits (B, K). 'predict': per image a dictionary of ``logits`` (K,) in fp32
            and, as far as given, ``label`` and ``img_path``.

        Raises:
            InputError: another mode.
        """
        if mode not in ('tensor', 'predict'):
            raise InputError(f"EVACLIPZeroShot is for tests, in mode 'tensor' or 'predict': {mode}")
        features = F.normalize(self.clip.encode_image(image), dim=-1)
        logits = self.logit_scale * features @ self.class_features()
        if mode == 'tensor':
            return logits
        given = {k: v for k, v in dict(label=label, img_path=img_path).items() if v is not None}
        return [
            dict(logits=row, **{key: values[index] for key, values in given.items()})
            for index, row in enumerate(logits.float())
        ]


def _build(model: str | Mapping[str, Any]) -> tuple[nn.Module, Callable]:
    """open_clip's model with random weights, and its tokeniser."""
    if isinstance(model, str):
        config = open_clip.get_model_config(model)
        if config is None:
            near = difflib.get_close_matches(model, open_clip.list_models(), n=5, cutoff=0.4)
            raise InputError(f'{model!r} is no model of open_clip; near: {", ".join(near)}')
        tokenizer = open_clip.get_tokenizer(model)
    else:
        config = copy.deepcopy(dict(model))
        length = config['text_cfg'].get('context_length', 77)
        tokenizer = open_clip.SimpleTokenizer(context_length=length)
    kind = open_clip.CustomTextCLIP if config.pop('custom_text', False) else open_clip.CLIP
    return kind(**config).eval().requires_grad_(False), tokenizer


def _own_name(name: str, own: set[str]) -> str | None:
    """Name of a parameter in open_clip's model; None if it has none of that name.

    The authors' image tower lacks open_clip's ``trunk.``, and their temperature lies in the text
    tower.
    """
    candidates = [name, name.replace('visual.', 'visual.trunk.', 1), name.removeprefix('text.')]
    return next((candidate for candidate in candidates if candidate in own), None)


def _class_texts(classes: str | Sequence[str]) -> tuple[str, ...]:
    if isinstance(classes, str) and classes == 'imagenet-1k':
        return tuple(open_clip.IMAGENET_CLASSNAMES)  # two names stand for two classes each
    return read_classes(classes)


def _templates(templates: str | Sequence[Template]) -> tuple[Template, ...]:
    if templates == 'openai':
        return tuple(open_clip.OPENAI_IMAGENET_TEMPLATES)
    if isinstance(templates, str):
        templates = [templates]
    for template in templates:
        with suppress(IndexError, KeyError, ValueError):  # of str.format
            if not isinstance(template, str) or template.format('x') != template.format('y'):
                continue
        raise InputError(f"templates: {template!r} has no place for a name, as 'a photo of a {{}}'")
    if not templates:
        raise InputError("templates: expected 'openai' or texts with {}, found none")
    return tuple(templates)


@CheckpointLoader.register_scheme(prefixes=OPEN_CLIP_SCHEME)
def load_from_open_clip(filename: str, map_location: Any = None) -> dict:
    """Loader of ``open_clip://MODEL/TAG``: weights that open_clip knows, from its download cache.

    Raises:
        InputError: no such model or tag (those that there are are told).
        MissingFileError: they cannot be fetched.
    """
    model, _, tag = filename.removeprefix(OPEN_CLIP_SCHEME).partition('/')
    config = open_clip.get_pretrained_cfg(model, tag)
    if not config:
        tags = open_clip.list_pretrained_tags_by_model(model)
        known = ', '.join(f'{OPEN_CLIP_SCHEME}{model}/{tag}' for tag in tags) or 'none of the model'
        raise InputError(f'{filename} is unknown to open_clip, which has {known}')
    try:
        file = open_clip.download_pretrained(config)
    except Exception as error:  # of the network, in as many kinds as there are libraries
        raise MissingFileError(f'{filename} could not be fetched: {error}') from error
    return safe_load(file, map_location)
