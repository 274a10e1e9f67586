"""Names of parameters: one table for both directions.

The core keeps the published names, so only heads that a host package forces other names on are
listed. A rule is a pair of name patterns; ``{stage}`` stands for a number, and ``{i+1}`` for a
number that is one higher on this side than ``{i}`` on the other.
"""

import functools
import re
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple, TypeVar

from torch import Tensor

from eva_mm.errors import InputError

Value = TypeVar('Value')
Rule = tuple[str, str]
_PLACEHOLDER = re.compile(r'\{(\w+?)(?:\+(\d+))?\}')


@functools.cache
def _compile(pattern: str) -> re.Pattern:
    """Regular expression of a name pattern's beginning of a key."""
    parts, position = [], 0
    for match in _PLACEHOLDER.finditer(pattern):
        parts += [re.escape(pattern[position : match.start()]), rf'(?P<{match[1]}>\d+)']
        position = match.end()
    return re.compile(''.join(parts) + re.escape(pattern[position:]))


def _offsets(pattern: str) -> dict[str, int]:
    return {name: int(offset or 0) for name, offset in _PLACEHOLDER.findall(pattern)}


def _rename(key: str, source: str, target: str) -> str | None:
    """The key with its beginning rewritten from one pattern to the other; None if it differs."""
    match = _compile(source).match(key)
    if match is None:
        return None
    values = {name: int(match[name]) - offset for name, offset in _offsets(source).items()}
    start = _PLACEHOLDER.sub(lambda m: str(values[m[1]] + int(m[2] or 0)), target)
    return start + key[match.end() :]


class KeyTable:
    """Bijective renaming between published names and this package's names.

    Args:
        rules: (published pattern, pattern here) pairs; the first that matches a key's beginning
            counts. Keys that none matches stay as they are.
        own: beginnings of names that are ours already. Needed where a published pattern matches
            them too: the empty one of a catch-all rule, say.
    """

    def __init__(self, *rules: Rule, own: tuple[str, ...] = ()):
        self.rules = rules
        self.own = own

    def to_mm(self, state_dict: Mapping[str, Value]) -> dict[str, Value]:
        """Published names -> names here. Names that are ours already stay."""
        return self._apply(state_dict, self.rules, self.own)

    def to_official(self, state_dict: Mapping[str, Value]) -> dict[str, Value]:
        """Names here -> published names."""
        return self._apply(state_dict, [(mm, official) for official, mm in self.rules])

    @staticmethod
    def _apply(
        state_dict: Mapping[str, Value], rules: Iterable[Rule], own: tuple[str, ...] = ()
    ) -> dict[str, Value]:
        renamed = {}
        for key, value in state_dict.items():
            candidates = (_rename(key, source, target) for source, target in rules)
            new_key = next((name for name in candidates if name is not None), key)
            if own and key.startswith(own):
                new_key = key
            if new_key in renamed:
                raise ValueError(f'two parameters are called {new_key!r} after renaming {key!r}')
            renamed[new_key] = value
        return renamed


_BOX = 'roi_heads.box_head.{stage}.', 'roi_head.bbox_head.{stage}.'
_PREDICTOR = 'roi_heads.box_predictor.{stage}.', 'roi_head.bbox_head.{stage}.'
_MASK = 'roi_heads.mask_head.', 'roi_head.mask_head.'

# EVA-01/det: detectron2 names against mmdet's.
DETECTOR_KEYS = KeyTable(
    ('backbone.net.', 'backbone.'),
    ('backbone.simfp_{level}.', 'neck.simfp_{level}.'),
    ('proposal_generator.rpn_head.conv.conv{i}.', 'rpn_head.rpn_conv.{i}.conv.'),
    ('proposal_generator.rpn_head.objectness_logits.', 'rpn_head.rpn_cls.'),
    ('proposal_generator.rpn_head.anchor_deltas.', 'rpn_head.rpn_reg.'),
    (_BOX[0] + 'conv{i+1}.norm.', _BOX[1] + 'shared_convs.{i}.ln.'),
    (_BOX[0] + 'conv{i+1}.', _BOX[1] + 'shared_convs.{i}.conv.'),
    (_BOX[0] + 'fc{i+1}.', _BOX[1] + 'shared_fcs.{i}.'),
    (_PREDICTOR[0] + 'cls_score.', _PREDICTOR[1] + 'fc_cls.'),
    (_PREDICTOR[0] + 'bbox_pred.', _PREDICTOR[1] + 'fc_reg.'),
    (
        _PREDICTOR[0] + 'fed_loss_cls_weights',
        _PREDICTOR[1] + 'loss_cls.fed_loss_cls_weights',
    ),
    (_MASK[0] + 'mask_fcn{i+1}.norm.', _MASK[1] + 'convs.{i}.ln.'),
    (_MASK[0] + 'mask_fcn{i+1}.', _MASK[1] + 'convs.{i}.conv.'),
    (_MASK[0] + 'deconv.', _MASK[1] + 'upsample.'),
    (_MASK[0] + 'predictor.', _MASK[1] + 'conv_logits.'),
)

# EVA-01/video: one module, against mmaction2's recognizer of a backbone and a head.
VIDEO_KEYS = KeyTable(
    ('fc_norm.', 'cls_head.fc_norm.'),
    ('head.', 'cls_head.fc_cls.'),
    ('', 'backbone.'),
    own=('backbone.', 'cls_head.'),
)

_ENCODER = 'decode_head.pixel_decoder.encoder.layers.{layer}.'
_DECODER = 'decode_head.transformer_decoder.layers.{layer}.'

# EVA-01/seg: Mask2Former built of mmcv's generic transformer layers (mmdet 2.22), whose parts are
# numbered in their order of use, against mmdet 3, which names them. The ViT-Adapter and the rest
# of the head keep their names.
SEGMENTOR_KEYS = KeyTable(
    (_ENCODER + 'attentions.0.', _ENCODER + 'self_attn.'),
    (_ENCODER + 'ffns.0.', _ENCODER + 'ffn.'),
    (_DECODER + 'attentions.0.', _DECODER + 'cross_attn.'),
    (_DECODER + 'attentions.1.', _DECODER + 'self_attn.'),
    (_DECODER + 'ffns.0.', _DECODER + 'ffn.'),
)

TABLES = {'detector': DETECTOR_KEYS, 'video': VIDEO_KEYS, 'segmentor': SEGMENTOR_KEYS}

# -------------------------------------------------------------------- which names a kind has


class Part(NamedTuple):
    """Names that stand together: all of them, or none where ``absent`` is given.

    Attributes:
        variants: lists of names of which a file has one; ``#``, in place of a name's first number,
            stands for every number of the stack, from 0 to the highest in the file.
        absent: what a file without the part lacks, in words; empty if that is nothing to tell,
            None if the part has to be there.
    """

    variants: tuple[tuple[str, ...], ...]
    absent: str | None


_SHORTHANDS = {
    'WB': '{weight,bias}',
    'LN': '{weight,norm.weight,norm.bias}',  # a convolution of detectron2 and its norm
    'BN': '{weight,bias,running_mean,running_var,num_batches_tracked}',
}


def _expand(text: str) -> list[str]:
    """'norm{1,2}.{weight,bias}' -> four names, as a shell does."""
    match = re.search(r'\{([^{}]*)\}', text)
    if match is None:
        return [text]
    rests = (text[: match.start()] + choice + text[match.end() :] for choice in match[1].split(','))
    return [name for rest in rests for name in _expand(rest)]


def _part(*variants: str, prefix: str = '', absent: str | None = None) -> Part:
    """A part, from names with braces and :data:`_SHORTHANDS`, separated by blanks."""
    expanded = []
    for text in variants:
        for short, long in _SHORTHANDS.items():
            text = text.replace(short, long)
        expanded.append(tuple(prefix + n for word in text.split() for n in _expand(word)))
    return Part(tuple(expanded), absent)


def _blocks(stack: str, tables: str = '') -> tuple[Part, ...]:
    """Transformer blocks; ``tables`` tells that decomposed relative positions are usual."""
    block = f'{stack}#.'
    return (
        _part('norm{1,2}.WB attn.qkv.weight attn.proj.WB mlp.fc{1,2}.WB', prefix=block),
        _part('attn.{q,v}_bias', 'attn.qkv.bias', prefix=block),
        _part('gamma_{1,2}', prefix=block, absent=''),
        _part('attn.rel_pos_{h,w}', prefix=block, absent=tables),
        _part('attn.relative_position_bias_table', prefix=block, absent=''),
        _part('attn.relative_position_index', prefix=block, absent=''),
    )


def _vit(prefix: str = '', tables: str = '') -> tuple[Part, ...]:
    return (
        _part('pos_embed patch_embed.proj.WB', prefix=prefix),
        *_blocks(f'{prefix}blocks.', tables),
    )


_CLS_TOKEN, _NORM = _part('cls_token'), _part('norm.WB')
_HEAD = _part('head.WB', absent='head')
_POOLED = _part('fc_norm.WB', 'norm.WB')  # of a mean of patch tokens, or of the class token

# EVA-01/clip/eva_model.py.
_CLIP = (
    *_vit('visual.'),
    _part('cls_token norm.WB', prefix='visual.'),
    _part('head.WB', prefix='visual.', absent='projection of images (visual.head)'),
    _part(
        'positional_embedding text_projection logit_scale token_embedding.weight ln_final.WB '
        'transformer.resblocks.#.{ln_{1,2}.WB,attn.in_proj_weight,attn.in_proj_bias} '
        'transformer.resblocks.#.{attn.out_proj,mlp.c_fc,mlp.c_proj}.WB',
        prefix='text.',
        absent='text tower',
    ),
    _part('text.attn_mask', absent=''),
)

# EVA-01/det/projects/ViTDet; one without a mask head is trained on boxes alone.
_DETECTOR = (
    *_vit('backbone.net.', tables='relative position tables'),
    _part('backbone.net.cls_token', absent=''),
    _part(
        'simfp_2.{0,1,3}.WB simfp_2.{4,5}.LN simfp_3.0.WB simfp_3.{1,2}.LN simfp_4.{0,1}.LN '
        'simfp_5.{1,2}.LN',
        prefix='backbone.',
    ),
    _part(
        '{conv.conv0,conv.conv1,objectness_logits,anchor_deltas}.WB',
        prefix='proposal_generator.rpn_head.',
    ),
    _part(
        'box_head.{0,1,2}.conv{1,2,3,4}.LN box_head.{0,1,2}.fc1.WB '
        'box_predictor.{0,1,2}.bbox_pred.WB',
        prefix='roi_heads.',
    ),
    _part('roi_heads.box_predictor.{0,1,2}.cls_score.WB', absent='class scores'),
    _part('roi_heads.box_predictor.{0,1,2}.fed_loss_cls_weights', absent=''),
    _part('mask_fcn{1,2,3,4}.LN deconv.WB', prefix='roi_heads.mask_head.', absent='mask head'),
    _part('roi_heads.mask_head.predictor.WB', absent='mask predictor'),
)

_DEFORMABLE = '{sampling_offsets,attention_weights,value_proj,output_proj}.WB'
_FFN = 'ffns.0.layers.{0.0,1}.WB'


def _segmentor(prefix: str) -> tuple[Part, ...]:
    """ViT-Adapter of four interactions, and Mask2Former (EVA-01/seg)."""
    extractors = '{interactions.{0,1,2,3}.extractor,interactions.3.extra_extractors.{0,1}}'
    injectors = 'interactions.{0,1,2,3}.injector'
    deformable = f'attentions.0.{_DEFORMABLE}'
    attention = 'attentions.{0,1}.attn.{in_proj_{weight,bias},out_proj.WB}'
    return (
        *_vit(prefix),
        _part('cls_token', prefix=prefix),
        _part(
            'level_embed up.WB norm{1,2,3,4}.BN spm.stem.{0,3,6}.weight spm.stem.{1,4,7}.BN '
            f'spm.conv{{2,3,4}}.0.weight spm.conv{{2,3,4}}.1.BN spm.fc{{1,2,3,4}}.WB '
            f'{injectors}.gamma {injectors}.{{query,feat}}_norm.WB {injectors}.attn.{_DEFORMABLE} '
            f'{extractors}.{{query,feat,ffn}}_norm.WB {extractors}.attn.{_DEFORMABLE} '
            f'{extractors}.ffn.{{fc1,fc2,dwconv.dwconv}}.WB',
            prefix=prefix,
        ),
        _part(
            'pixel_decoder.input_convs.#.{conv,gn}.WB pixel_decoder.level_encoding.weight '
            'pixel_decoder.{lateral,output}_convs.#.{conv.weight,gn.weight,gn.bias} '
            'pixel_decoder.mask_feature.WB '
            f'pixel_decoder.encoder.layers.#.{{{deformable},{_FFN},norms.{{0,1}}.WB}} '
            f'transformer_decoder.layers.#.{{{attention},{_FFN},norms.{{0,1,2}}.WB}} '
            'transformer_decoder.post_norm.WB {query_embed,query_feat,level_embed}.weight '
            'mask_embed.{0,2,4}.WB',
            prefix='decode_head.',
            absent='decode_head',
        ),
        _part('decode_head.cls_embed.WB', absent='class scores'),
        _part('decode_head.decoder_input_projs.#.WB', absent=''),
        _part('decode_head.conv_seg.WB', absent=''),
    )


PARTS: dict[str, tuple[Part, ...]] = {
    'mim': (
        *_vit(),
        _CLS_TOKEN,
        _part('mask_token', absent='mask_token'),
        _part('lm_head.WB', absent='lm_head'),
        _part('norm.WB', absent='final norm'),
    ),
    'mae': (
        *_vit(),
        _CLS_TOKEN,
        _NORM,
        _part('mask_token decoder_pos_embed decoder_{embed,norm,pred}.WB'),
        *_blocks('decoder_blocks.'),
    ),
    'classifier': (*_vit(), _CLS_TOKEN, _POOLED, _HEAD),
    'linear': (
        *_vit(),
        _CLS_TOKEN,
        _POOLED,
        _part('head.0.{running_mean,running_var,num_batches_tracked} head.1.WB'),
    ),
    'clip': _CLIP,
    'clip_vision': (*_vit(), _CLS_TOKEN, _NORM, _part('head.WB', absent='projection (head)')),
    'detector': _DETECTOR,
    'segmentor': _segmentor('backbone.'),
    'video': (*_vit(), _CLS_TOKEN, _part('fc_norm.WB', absent='fc_norm'), _HEAD),
}
"""Published names of each kind; what else a file holds is unknown."""

_BARE_SEGMENTOR = _segmentor('')  # a backbone saved alone

PRETRAINING_PARTS = ('mask_token', 'lm_head.', 'decoder_')
"""Beginnings of what masked pretraining has beside the encoder (EVA-01/eva/modeling_pretrain.py
for EVA, EVA-01/eva/modeling_mae_pretrain.py for EVA-L)."""

_WB = r'\.(weight|bias)'
# Published names with a row per class -> rows they have besides (background, no object).
CLASS_ROWS: dict[str, dict[str, int]] = {
    'classifier': {rf'head{_WB}': 0},
    'linear': {rf'head\.1{_WB}': 0},
    'video': {rf'head{_WB}': 0},
    'detector': {
        rf'roi_heads\.box_predictor\.\d+\.cls_score{_WB}': 1,
        r'roi_heads\.box_predictor\.\d+\.fed_loss_cls_weights': 0,
        rf'roi_heads\.mask_head\.predictor{_WB}': 0,
    },
    'segmentor': {rf'decode_head\.cls_embed{_WB}': 1, rf'decode_head\.conv_seg{_WB}': 0},
}

# Names that tell a kind wherever they stand, in this order; those here and the published ones.
_MARKS = (
    ('detector', r'backbone\.net\.|roi_heads?\.|rpn_head\.|proposal_generator\.|neck\.'),
    ('segmentor', r'decode_head\.|(backbone\.)?(interactions|spm)\.'),
    ('video', r'cls_head\.'),
    ('clip', r'visual\.|text\.'),
    ('mae', r'decoder_'),
    ('linear', r'head\.1\.'),
    ('mim', r'mask_token|lm_head\.'),
)
_CORE_NAME = re.compile(r'((?:.*\.)?)blocks\.\d+\.attn\.qkv\.weight')
_CLIP_DIM = 1024  # outputs of EVA-CLIP's image tower


def detect_kind(state_dict: Mapping[str, Tensor]) -> str:
    """Kind of model that weights are of, by their names.

    A transformer with neither head nor parts of pretraining counts as ``'mim'``, one whose class
    token goes through ``norm`` to a ``head`` of EVA-CLIP's width as ``'clip_vision'``.

    Args:
        state_dict: published names or names here.

    Returns:
        A key of :data:`PARTS`.

    Raises:
        ValueError: the names are of no EVA model.
    """
    names = list(state_dict)
    core = next((match for name in names if (match := _CORE_NAME.fullmatch(name))), None)
    if core is None:
        shown = ', '.join(names[:3]) or 'nothing'
        raise InputError(
            f'no weights of EVA: {len(names)} names such as {shown}; expected names such as '
            'blocks.0.attn.qkv.weight'
        )
    for kind, mark in _MARKS:
        if any(re.match(mark, name) for name in names):
            return kind
    kernel = state_dict.get(core[1] + 'patch_embed.proj.weight')
    if kernel is not None and kernel.ndim == 5:
        return 'video'
    if any(name.startswith('fc_norm.') for name in names):
        return 'classifier'
    if 'head.weight' in state_dict:
        clip = 'norm.weight' in state_dict and len(state_dict['head.weight']) == _CLIP_DIM
        return 'clip_vision' if clip else 'classifier'
    return 'mim'


def _parts(kind: str, names: Collection[str]) -> tuple[Part, ...]:
    bare = kind == 'segmentor' and not any(name.startswith('backbone.') for name in names)
    return _BARE_SEGMENTOR if bare else PARTS[kind]


@functools.cache
def _known(parts: tuple[Part, ...]) -> frozenset[str]:
    return frozenset(n for part in parts for variant in part.variants for n in variant)


def unknown_names(names: Collection[str], kind: str) -> list[str]:
    """Published names that no checkpoint of a kind has."""
    known = _known(_parts(kind, names))
    return [n for n in names if n not in known and re.sub(r'\d+', '#', n, count=1) not in known]


def stack_depths(names: Iterable[str]) -> dict[str, int]:
    """What stands before the first number of names -> how many there are, counted from 0."""
    depths: dict[str, int] = {}
    for name in names:
        if match := re.match(r'(\D+)(\d+)', name):
            depths[match[1]] = max(depths.get(match[1], 0), int(match[2]) + 1)
    return depths


def missing_names(
    names: Collection[str], kind: str, dropped: Collection[str] = ()
) -> tuple[list[str], list[str]]:
    """Names that a checkpoint of a kind should have, against :data:`PARTS`.

    Args:
        names: published names in the file.
        kind: a key of :data:`PARTS`.
        dropped: names that were in it and are left out on purpose.

    Returns:
        Names that are missing; and whole parts that it may legitimately lack, in words.
    """
    there = {*names, *dropped}
    depths = stack_depths(there)
    missing, absent = [], []
    for part in _parts(kind, there):
        variants = [_numbered(variant, depths) for variant in part.variants]
        wanted = max(variants, key=lambda variant: len(there.intersection(variant)))
        if part.absent is None or not set(names).isdisjoint(wanted):
            missing += [name for name in wanted if name not in there]
        elif part.absent and there.isdisjoint(wanted):
            absent.append(part.absent)
    return missing, absent


def _numbered(names: Iterable[str], depths: Mapping[str, int]) -> list[str]:
    """Names with every number of their stack in place of ``#``; 0 alone where it is empty."""
    return [
        name.replace('#', str(number))
        for name in names
        for number in range(depths.get(name.split('#')[0], 1) if '#' in name else 1)
    ]


def class_rows(names: Iterable[str], kind: str) -> dict[str, int]:
    """Published names with a row per class -> rows besides those of classes."""
    patterns = CLASS_ROWS.get(kind, {})
    return {
        name: extra
        for name in names
        for pattern, extra in patterns.items()
        if re.fullmatch(pattern, name)
    }
