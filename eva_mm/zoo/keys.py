"""Names of parameters: one table for both directions.

The core keeps the published names, so only heads that a host package forces other names on are
listed. A rule is a pair of name patterns; ``{stage}`` stands for a number, and ``{i+1}`` for a
number that is one higher on this side than ``{i}`` on the other.
"""

import re
from collections.abc import Mapping
from typing import TypeVar

Value = TypeVar('Value')
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
    """

    def __init__(self, *rules: tuple[str, str]):
        self.rules = rules

    def to_mm(self, state_dict: Mapping[str, Value]) -> dict[str, Value]:
        """Published names -> names here. Names that are ours already stay."""
        return self._apply(state_dict, self.rules)

    def to_official(self, state_dict: Mapping[str, Value]) -> dict[str, Value]:
        """Names here -> published names."""
        return self._apply(state_dict, [(mm, official) for official, mm in self.rules])

    @staticmethod
    def _apply(state_dict: Mapping[str, Value], rules) -> dict[str, Value]:
        renamed = {}
        for key, value in state_dict.items():
            candidates = (_rename(key, source, target) for source, target in rules)
            new_key = next((name for name in candidates if name is not None), key)
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

TABLES = {'detector': DETECTOR_KEYS}
