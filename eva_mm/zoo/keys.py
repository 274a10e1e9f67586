"""Names of parameters: one table for both directions.

The core keeps the published names, so only heads that a host package forces other names on are
listed. A rule is a pair of name patterns; ``{stage}`` stands for a number, and ``{i+1}`` for a
number that is one higher on this side than ``{i}`` on the other.
"""

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from torch import Tensor

from eva_mm.errors import InputError

Value = TypeVar('Value')
Rule = tuple[str, str]
_PLACEHOLDER = re.compile(r'\{(\w+?)(?:\+(\d+))?\}')


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

# ----------------------------------------------------------------- what kind of model names are of

_WB = r'\.(weight|bias)'
_STATISTICS = r'\.(weight|bias|running_mean|running_var|num_batches_tracked)'
_BLOCK = (
    rf'((norm[12]|attn\.(qkv|proj)|mlp\.fc[12]){_WB}|attn\.[qv]_bias|gamma_[12]'
    r'|attn\.(rel_pos_[hw]|relative_position_bias_table|relative_position_index))'
)
_VIT = rf'(cls_token|pos_embed|patch_embed\.proj{_WB}|blocks\.\d+\.{_BLOCK})'
_TEXT = (
    rf'(positional_embedding|text_projection|logit_scale|attn_mask|token_embedding\.weight'
    rf'|ln_final{_WB}|transformer\.resblocks\.\d+\.((ln_[12]|attn\.out_proj|mlp\.c_(fc|proj)){_WB}'
    r'|attn\.in_proj_(weight|bias)))'
)
_DEFORMABLE = rf'(sampling_offsets|attention_weights|value_proj|output_proj){_WB}'
_ADAPTER = (
    rf'(level_embed|spm\.(stem|conv[234])\.\d+{_STATISTICS}|spm\.fc[1-4]{_WB}|up{_WB}'
    rf'|norm[1-4]{_STATISTICS}|interactions\.\d+\.(injector|extractor|extra_extractors\.\d+)\.'
    rf'(gamma|attn\.{_DEFORMABLE}|(query_norm|feat_norm|ffn_norm|ffn\.(fc[12]|dwconv\.dwconv)){_WB}))'
)
_FFN = rf'ffns\.0\.layers\.(0\.0|1){_WB}|norms\.\d+{_WB}'
_MASK2FORMER = (
    rf'(pixel_decoder\.((input|lateral|output)_convs\.\d+\.(conv|gn)|mask_feature){_WB}'
    rf'|pixel_decoder\.encoder\.layers\.\d+\.(attentions\.0\.{_DEFORMABLE}|{_FFN})'
    r'|transformer_decoder\.layers\.\d+\.'
    rf'(attentions\.[01]\.attn\.(in_proj_weight|in_proj_bias|out_proj{_WB})|{_FFN})'
    rf'|(transformer_decoder\.post_norm|decoder_input_projs\.\d+|cls_embed|mask_embed\.\d+|conv_seg){_WB}'
    r'|(pixel_decoder\.level_encoding|query_embed|query_feat|level_embed)\.weight)'
)
_CASCADE = (
    rf'(backbone\.simfp_\d\.\d+(\.norm)?{_WB}|roi_heads\.box_predictor\.\d+\.fed_loss_cls_weights'
    rf'|proposal_generator\.rpn_head\.(conv\.conv\d+|objectness_logits|anchor_deltas){_WB}'
    rf'|roi_heads\.box_head\.\d+\.(conv\d+(\.norm)?|fc\d+){_WB}'
    rf'|roi_heads\.box_predictor\.\d+\.(cls_score|bbox_pred){_WB}'
    rf'|roi_heads\.mask_head\.(mask_fcn\d+(\.norm)?|deconv|predictor){_WB})'
)

# Every published name of a kind; what else a file holds is unknown.
KINDS: dict[str, str] = {
    'mim': rf'{_VIT}|mask_token|(norm|lm_head){_WB}',
    'mae': rf'{_VIT}|mask_token|norm{_WB}|decoder_pos_embed|decoder_(embed|norm|pred){_WB}'
    rf'|decoder_blocks\.\d+\.{_BLOCK}',
    'classifier': rf'{_VIT}|(norm|fc_norm|head){_WB}',
    'linear': rf'{_VIT}|(norm|fc_norm){_WB}|head\.0{_STATISTICS}|head\.1{_WB}',
    'clip': rf'visual\.({_VIT}|(norm|head){_WB})|text\.{_TEXT}',
    'clip_vision': rf'{_VIT}|(norm|head){_WB}',
    'detector': rf'backbone\.net\.{_VIT}|{_CASCADE}',
    'segmentor': rf'(backbone\.)?({_VIT}|{_ADAPTER})|decode_head\.{_MASK2FORMER}',
    'video': rf'{_VIT}|(fc_norm|head){_WB}',
}

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
_CORE_NAME = 'blocks.0.attn.qkv.weight'
_CLIP_DIM = 1024  # outputs of EVA-CLIP's image tower


def detect_kind(state_dict: Mapping[str, Tensor]) -> str:
    """Kind of model that weights are of, by their names.

    A transformer with neither head nor parts of pretraining counts as ``'mim'``, one whose class
    token goes through ``norm`` to a ``head`` of EVA-CLIP's width as ``'clip_vision'``.

    Args:
        state_dict: published names or names here.

    Returns:
        A key of :data:`KINDS`.

    Raises:
        ValueError: the names are of no EVA model.
    """
    names = list(state_dict)
    core = next((name for name in names if name.endswith(_CORE_NAME)), None)
    if core is None:
        shown = ', '.join(names[:3]) or 'nothing'
        raise InputError(
            f'no weights of EVA: {len(names)} names such as {shown}; expected names such as '
            f'{_CORE_NAME}'
        )
    for kind, mark in _MARKS:
        if any(re.match(mark, name) for name in names):
            return kind
    kernel = state_dict.get(core.removesuffix(_CORE_NAME) + 'patch_embed.proj.weight')
    if kernel is not None and kernel.ndim == 5:
        return 'video'
    if 'fc_norm.weight' in state_dict:
        return 'classifier'
    if 'head.weight' in state_dict:
        clip = 'norm.weight' in state_dict and len(state_dict['head.weight']) == _CLIP_DIM
        return 'clip_vision' if clip else 'classifier'
    return 'mim'


def unknown_names(names: Iterable[str], kind: str) -> list[str]:
    """Published names that no checkpoint of a kind has."""
    known = re.compile(KINDS[kind])
    return [name for name in names if not known.fullmatch(name)]


def missing_names(names: Iterable[str]) -> list[str]:
    """Parts that other blocks of the same stack have: a file with some of its weights lost."""
    stacks: dict[str, dict[int, set[str]]] = {}
    for name in names:
        if match := re.match(r'(.*?blocks\.)(\d+)\.(.+)', name):
            stacks.setdefault(match[1], {}).setdefault(int(match[2]), set()).add(match[3])
    return [
        f'{stack}{index}.{part}'
        for stack, blocks in stacks.items()
        for index in range(max(blocks) + 1)
        for part in sorted(set.union(*blocks.values()) - blocks.get(index, set()))
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
