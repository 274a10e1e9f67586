"""Conversion of checkpoints: names, heads, sizes, precision and file format.

Nothing is lost in silence. A name that no model of the kind has, a block that lacks a part, a
head of another number of classes than was asked for: each is an error that lists names and
shapes, until the caller says what to do with them. :class:`Report` tells what was done.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from eva_mm.errors import InputError
from eva_mm.resize import (
    REL_POS_RULES,
    resize_grid,
    resize_patch_kernel,
    resize_pos_embed,
    resize_rel_pos,
    square_side,
)
from eva_mm.vit import SIZES

from .keys import (
    PARTS,
    PRETRAINING_PARTS,
    TABLES,
    KeyTable,
    class_rows,
    detect_kind,
    missing_names,
    stack_depths,
    unknown_names,
)
from .timm_names import from_timm, to_timm

Weights = dict[str, Tensor]
Grid = tuple[int, int]

PUBLISHED_IMAGE_SIZE = 224  # of every published video model (EVA-01/video/configs)
PUBLISHED_DEPTHS = {SIZES[size].embed_dim: SIZES[size].depth for size in ('giant', 'large')}
STYLES = ('mm', 'official', 'timm')
"""Names that :func:`convert` gives."""

_WRAPPED = KeyTable(('', 'backbone.'))  # an encoder inside a model of another framework
# Stacks besides the encoder's blocks, in words.
_STACKS = {
    'decoder_blocks.': 'decoder blocks',
    'text.transformer.resblocks.': 'text blocks',
    'decode_head.pixel_decoder.encoder.layers.': 'encoder layers',
    'decode_head.transformer_decoder.layers.': 'decoder layers',
}
_SHOWN = 12  # lines per list


@dataclass(frozen=True)
class Changes:
    """What a conversion changes besides names; nothing by default.

    Attributes:
        num_classes: classes that the head must have.
        head_rows: rows of the head to keep, in this order: indices, or a boolean mask over the
            classes. Rows of background or of no object stay, at the end.
        drop_head: leave out all that depends on the number of classes.
        drop_pretraining_parts: leave out mask token, ``lm_head`` and MAE decoder.
        drop: further names to leave out, patterns of :mod:`fnmatch` on published names.
        allow_unknown: carry names on that no model of the kind has.
        allow_partial: go on where names are missing, or the depth is not the one published for
            the width.
        img_size: (height, width) in pixels to resize position embeddings to; in detectors, the
            relative tables of global blocks, since their position embedding stays at its
            pretraining size.
        grid: the same in patches.
        patch_size: side in pixels to resize the patch kernel to. The position embedding follows,
            for the same image size, unless ``img_size`` or ``grid`` is given.
        frames: of the clip. An image checkpoint becomes one of a video model.
        from_frames: of the clip that a video checkpoint is for; told from 224 px by default.
        tubelet_size: frames per token of the video model that an image checkpoint becomes.
        rel_pos_rule: see :func:`eva_mm.resize.resize_rel_pos`; 'linear' by default, and
            'geometric' for the joint tables of BEiT.
        dtype: of all floating-point weights; None keeps each.
    """

    num_classes: int | None = None
    head_rows: Tensor | Sequence[int] | None = None
    drop_head: bool = False
    drop_pretraining_parts: bool = False
    drop: Sequence[str] = ()
    allow_unknown: bool = False
    allow_partial: bool = False
    img_size: Grid | None = None
    grid: Grid | None = None
    patch_size: int | None = None
    frames: int | None = None
    from_frames: int | None = None
    tubelet_size: int | None = None
    rel_pos_rule: str | None = None
    dtype: torch.dtype | None = None

    def __post_init__(self):
        def require(fine: bool, text: str) -> None:
            if not fine:
                raise InputError(text)

        require(not (self.img_size and self.grid), 'give --img-size or --grid, not both')
        require(
            not (self.drop_head and self.head_rows is not None),
            'give --drop-head or --head-rows, not both',
        )
        require(
            not (self.drop_head and self.num_classes is not None),
            'give --drop-head or --num-classes, not both',
        )
        resized = self.img_size or self.grid
        require(
            not self.rel_pos_rule or bool(resized),
            '--rel-pos-rule says how tables are resized; give --img-size or --grid as well',
        )
        require(
            self.rel_pos_rule in (None, *REL_POS_RULES),
            f'--rel-pos-rule {self.rel_pos_rule}: expected one of {", ".join(REL_POS_RULES)}',
        )
        for name in ('patch_size', 'frames', 'from_frames', 'tubelet_size', 'num_classes'):
            value = getattr(self, name)
            option = '--' + name.replace('_', '-')
            require(value is None or value > 0, f'{option} {value}: expected a positive number')
        sides = resized or (1, 1)
        require(min(sides) > 0, f'a size of {sides[0]} x {sides[1]}: expected positive numbers')


@dataclass
class Report:
    """What a conversion did.

    Attributes:
        kind: of the result, a key of :data:`eva_mm.zoo.keys.PARTS`.
        model: its depths, width and patch size, in words.
        renamed: old name -> new name.
        resized: name -> old shape, new shape, how.
        dropped: name -> shape.
        folded: name -> shape, of what went into tensors of other names, which the notes tell.
        cast: name -> old dtype, new dtype.
        kept: tensors whose name and values are unchanged.
        classes: of the head, in the source and in the result; None without a head.
        head_rows: rows of the source's head that stayed, where they were chosen.
        notes: what else to know, a line each.
    """

    kind: str
    model: str = ''
    renamed: dict[str, str] = field(default_factory=dict)
    resized: dict[str, tuple[tuple, tuple, str]] = field(default_factory=dict)
    dropped: dict[str, tuple] = field(default_factory=dict)
    folded: dict[str, tuple] = field(default_factory=dict)
    cast: dict[str, tuple[torch.dtype, torch.dtype]] = field(default_factory=dict)
    kept: int = 0
    classes: tuple[int, int] | None = None
    head_rows: list[int] | None = None
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        resized = {
            k: f'{shape_text(a)} -> {shape_text(b)}, {how}'
            for k, (a, b, how) in self.resized.items()
        }
        parts = {
            'renamed': (self.renamed, _count(_renaming(*pair) for pair in self.renamed.items())),
            'resized': (self.resized, _fold(resized)),
            'dropped': (self.dropped, _fold({k: shape_text(v) for k, v in self.dropped.items()})),
            'folded': (self.folded, _fold({k: shape_text(v) for k, v in self.folded.items()})),
            'cast': (
                self.cast,
                _count(f'{_dtype(a)} -> {_dtype(b)}' for a, b in self.cast.values()),
            ),
        }
        lines = [f'kind: {self.kind}', f'model: {self.model}']
        for title, (tensors, rows) in parts.items():
            if title == 'folded' and not tensors:
                continue
            lines.append(f'{title}: {len(tensors) or "none"}')
            lines += [f'  {row}' for row in rows]
        lines.append(f'kept as they are: {self.kept or "none"}')
        return '\n'.join([*lines, *(f'note: {note}' for note in self.notes)])


def convert(
    state_dict: Mapping[str, Tensor], to: str = 'mm', kind: str | None = None, **changes: Any
) -> tuple[Weights, Report]:
    """Convert weights in memory; the tensors given are not changed.

    Args:
        state_dict: published names, names here, or those of timm and open_clip.
        to: names of the result: 'mm' (names here), 'official' or 'timm'.
        kind: a key of :data:`eva_mm.zoo.keys.PARTS`; told by the names by default.
        **changes: see :class:`Changes`.

    Returns:
        Names and tensors, in the order of the source; and what was done.

    Raises:
        InputError: the names are of no EVA model or of another kind, something is unknown or
            missing, a head is of another size, or a change does not fit the weights.
    """
    require_one_of('names', to, STYLES)
    require_one_of('kind', kind, PARTS)
    try:
        return _Conversion(state_dict, kind, Changes(**changes)).run(to)
    except InputError:
        raise
    except ValueError as error:  # of resizing and renaming
        raise InputError(str(error)) from error


class _Conversion:
    """One run of :func:`convert`: weights under published names, changed step by step."""

    def __init__(self, state_dict: Mapping[str, Tensor], kind: str | None, changes: Changes):
        source = from_timm(state_dict)
        found = detect_kind(source)
        wrapped = [name for name in source if name.startswith('backbone.')]
        wrapped = [] if found in TABLES else wrapped
        if wrapped:
            source = _WRAPPED.to_official(source)
            found = detect_kind(source)
        table = TABLES.get(found)
        names = {name: name for name in source}
        # Twice: names of both sides may come in, and only `to_mm` leaves its own alone.
        names = table.to_official(table.to_mm(names)) if table else names
        self.original = names  # published name -> name in the source
        self.source = source
        self.weights: Weights = {name: source[old].detach() for name, old in names.items()}
        self.found, self.kind, self.changes = found, kind or found, changes
        self.report = Report(self.kind)
        if wrapped:
            self.report.notes.append(f'`backbone.` was taken off {len(wrapped)} names')

    def run(self, to: str) -> tuple[Weights, Report]:
        self._drop()
        self._require_complete()
        self._to_video()
        self._resize()
        self._select_classes()
        self._cast()
        self.report.model = self._model_text()
        return self._rename(to), self.report

    # ---------------------------------------------------------------------------- what stays

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            self.report.dropped[name] = tuple(self.weights.pop(name).shape)

    def _drop(self) -> None:
        changes, names = self.changes, list(self.weights)
        for pattern in changes.drop:
            matched = fnmatch.filter(names, pattern)
            if not matched:
                raise InputError(f'--drop {pattern} matches none of the names, such as {names[0]}')
            self._remove(name for name in matched if name in self.weights)
        if changes.drop_pretraining_parts:
            parts = PRETRAINING_PARTS
            # A video model takes no final norm either (EVA-01/video/models/clip_mae.py).
            if changes.frames and self.found in ('mim', 'mae'):
                parts += ('norm.',)
            parts = [name for name in self.weights if name.startswith(parts)]
            self._remove(parts)
            if not parts:
                self.report.notes.append('no parts of pretraining are in the file')
        if changes.drop_head:
            self._drop_head()

    def _drop_head(self) -> None:
        if self.found in ('detector', 'segmentor'):
            head = list(class_rows(self.weights, self.found))
        else:
            head = [name for name in self.weights if name.startswith('head.')]
        if not head:
            raise InputError(f'--drop-head: no head of classes is in this {self.found} checkpoint')
        self._remove(head)

    def _require_complete(self) -> None:
        """Refuse what the kind does not have, and weights of which a part is lost."""
        unknown = unknown_names(self.weights, self.kind)
        if len(unknown) == len(self.weights) and self.found != self.kind:
            raise InputError(
                f'the weights are of a {self.found} (names such as {unknown[0]}), not of a '
                f'{self.kind}'
            )
        if unknown and not self.changes.allow_unknown:
            raise InputError(self._unknown_text(unknown))
        if unknown:
            self.report.notes.append(f'{len(unknown)} unknown names go on as they are')
        missing, absent = missing_names(self.weights, self.kind, self.report.dropped)
        if absent:
            self.report.notes.append(f'the file is without {", ".join(absent)}')
        if missing:
            text = f'{len(missing)} parts that the model needs are missing:\n'
            self._refuse_partial(text + listing(dict.fromkeys(missing, '')))
        self._require_published_depth()

    def _refuse_partial(self, text: str) -> None:
        if not self.changes.allow_partial:
            raise InputError(f'{text}\n--allow-partial goes on nevertheless')
        self.report.notes.append(text)

    def _require_published_depth(self) -> None:
        """Refuse a file that lost its last blocks, which no other name tells."""
        prefix, kernel = self._patch_kernel() or ('', torch.empty(0))
        depth = stack_depths((*self.weights, *self.report.dropped)).get(f'{prefix}blocks.', 0)
        published = PUBLISHED_DEPTHS.get(len(kernel), depth)
        if depth != published:
            self._refuse_partial(
                f'{depth} blocks of width {len(kernel)}, where the published model has {published}'
            )

    def _patch_kernel(self) -> tuple[str, Tensor] | None:
        """What stands before the transformer's own names, and its patch kernel."""
        name = next((n for n in self.weights if n.endswith('patch_embed.proj.weight')), None)
        return name and (name.removesuffix('patch_embed.proj.weight'), self.weights[name])

    def _model_text(self) -> str:
        """'40 blocks, width 1408, 16 px patches'."""
        prefix, kernel = self._patch_kernel() or ('', None)
        depths = stack_depths(self.weights)
        texts = [f'{depths.get(prefix + "blocks.", 0)} blocks']
        if kernel is not None:
            texts += [f'width {len(kernel)}', f'{kernel.shape[-1]} px patches']
        texts += [f'{depths[stack]} {words}' for stack, words in _STACKS.items() if stack in depths]
        return ', '.join(texts)

    def _unknown_text(self, unknown: Sequence[str]) -> str:
        remedy = '--drop PATTERN leaves them out, --allow-unknown carries them on'
        if any(name.startswith((*PRETRAINING_PARTS, 'norm.')) for name in unknown):
            remedy = '--drop-pretraining-parts leaves those of pretraining out; ' + remedy
        if self.kind == 'video' and any(name.startswith('head.') for name in unknown):
            remedy = '--drop-head leaves the head out; ' + remedy
        shapes = {name: shape_text(self.weights[name].shape) for name in unknown}
        return (
            f'{len(unknown)} names are unknown in a {self.kind} checkpoint:\n{listing(shapes)}\n'
            f'{remedy}'
        )

    # --------------------------------------------------------------------------------- sizes

    @property
    def _prefix(self) -> str:
        found = self._patch_kernel()
        if found is None:
            raise InputError('patch_embed.proj.weight is missing: there is nothing to resize')
        return found[0]

    def _replace(self, name: str, tensor: Tensor, how: str) -> None:
        old = self.weights[name]
        before = self.report.resized.get(name, (tuple(old.shape), None, None))
        if before[2]:
            how = f'{before[2]}, then {how}'
        self.weights[name] = tensor
        if tensor.shape != old.shape:
            self.report.resized[name] = (before[0], tuple(tensor.shape), how)
        if tensor.dtype != old.dtype:
            self.report.cast[name] = (old.dtype, tensor.dtype)

    def _to_video(self) -> None:
        """Turn weights of an image model into those of a video model."""
        changes = self.changes
        if not (changes.frames or changes.from_frames or changes.tubelet_size):
            return
        name = self._prefix + 'patch_embed.proj.weight'
        kernel = self.weights[name]
        if kernel.ndim == 5:
            if changes.tubelet_size not in (None, kernel.shape[2]):
                raise InputError(
                    f'--tubelet-size {changes.tubelet_size}: this video checkpoint has tubelets '
                    f'of {kernel.shape[2]}, which stay'
                )
            return
        if self._prefix:
            raise InputError(f'--frames: a {self.found} checkpoint is no image model to start from')
        if changes.from_frames:
            raise InputError('--from-frames: this is the checkpoint of an image model')
        if changes.frames is None:
            raise InputError('--tubelet-size: give --frames as well')
        self._become_video(name, changes.tubelet_size or 1)

    def _become_video(self, name: str, tubelet: int) -> None:
        """Kernel spread over a tubelet, position embedding repeated for each (frame-major)."""
        steps = _divide(self.changes.frames, tubelet, f'--frames {self.changes.frames}', 'tubelets')
        self._resize_image()
        kernel, pos_embed = self.weights[name], self.weights['pos_embed']
        spread = kernel.float()[:, :, None].expand(-1, -1, tubelet, -1, -1) / tubelet
        self._replace(
            name, spread.to(kernel.dtype).contiguous(), f'repeated over tubelets of {tubelet}'
        )
        patches = pos_embed[:, 1:].repeat(1, steps, 1)
        repeated = torch.cat((pos_embed[:, :1], patches), dim=1)
        self._replace('pos_embed', repeated, f'repeated {steps} times')
        self.kind = self.report.kind = 'video'
        if unknown := unknown_names(self.weights, 'video'):
            raise InputError(self._unknown_text(unknown))
        # A head of the image model's classes would pass for one of the video model's.
        if head := [n for n in self.weights if n.startswith('head.')]:
            shapes = {n: shape_text(self.weights[n].shape) for n in head}
            raise InputError(
                f'the head of the image model is of other classes:\n{listing(shapes)}\n'
                '--drop-head leaves it out'
            )

    def _resize(self) -> None:
        changes = self.changes
        if not (changes.img_size or changes.grid or changes.patch_size or changes.frames):
            return
        kernel = self.weights[self._prefix + 'patch_embed.proj.weight']
        if kernel.ndim == 5:
            if self.found == 'video':
                self._resize_video(kernel)
        else:
            self._resize_image()
        if changes.img_size or changes.grid:
            self._resize_tables()

    def _target_grid(self, patch: int) -> Grid | None:
        """Grid in patches that --img-size or --grid asks for."""
        if self.changes.img_size is None:
            return self.changes.grid
        height, width = self.changes.img_size
        text = f'--img-size {height} x {width}'
        return _divide(height, patch, text, 'patches'), _divide(width, patch, text, 'patches')

    def _resize_image(self) -> None:
        """Patch kernel and position embedding, as ``eva_psz14to16.pt`` was made.

        The kernel stays in fp32 there (EVA-01/eva/interpolate_patch_14to16.py).
        """
        name = self._prefix + 'patch_embed.proj.weight'
        kernel = self.weights[name]
        old = kernel.shape[-1]
        patch = self.changes.patch_size or old
        if patch != old:
            self._replace(name, resize_patch_kernel(kernel.float(), patch), 'bicubic')
        target = None if self.kind == 'detector' else self._target_grid(patch)
        for key in ('pos_embed', 'decoder_pos_embed'):
            key = self._prefix + key if key == 'pos_embed' else key
            if key in self.weights:
                self._resize_pos_embed(key, target, old, patch)

    def _resize_pos_embed(self, key: str, target: Grid | None, old: int, patch: int) -> None:
        pos_embed = self.weights[key]
        side = square_side(pos_embed.shape[1] - 1)
        if target is None:
            pixels = side * old
            same = _divide(pixels, patch, f'--patch-size {patch}: {pixels} px', 'patches')
            target = (same, same)
        if target != (side, side):
            self._replace(key, resize_pos_embed(pos_embed, target), 'bicubic')

    def _resize_video(self, kernel: Tensor) -> None:
        """Position embedding of clips (1, 1 + frames * h * w, D), trilinearly.

        As EVA-01/video/utils/tools.py: the class token's slot stays.
        """
        changes, pos_embed = self.changes, self.weights['pos_embed']
        tubelet, patch = kernel.shape[2], kernel.shape[-1]
        if changes.patch_size not in (None, patch):
            raise InputError(
                f'--patch-size {changes.patch_size}: convert the image checkpoint, before --frames '
                'makes it one of a video model'
            )
        count = pos_embed.shape[1] - 1
        steps, side = self._clip(count, tubelet, patch)
        height, width = self._target_grid(patch) or (side, side)
        frames = changes.frames or steps * tubelet
        target = (_divide(frames, tubelet, f'--frames {frames}', 'tubelets'), height, width)
        if target == (steps, side, side):
            return
        grid = pos_embed[:, 1:].float().transpose(1, 2).reshape(1, -1, steps, side, side)
        grid = F.interpolate(grid, size=target, mode='trilinear', align_corners=False)
        patches = grid.flatten(2).transpose(1, 2).to(pos_embed.dtype)
        self._replace('pos_embed', torch.cat((pos_embed[:, :1], patches), dim=1), 'trilinear')

    def _clip(self, count: int, tubelet: int, patch: int) -> tuple[int, int]:
        """Steps in time and side of the grid that a video position embedding is for."""
        if self.changes.from_frames:
            text = f'--from-frames {self.changes.from_frames}'
            steps = _divide(self.changes.from_frames, tubelet, text, 'tubelets')
            return steps, square_side(_divide(count, steps, f'{text}: {count} patches', 'frames'))
        side = PUBLISHED_IMAGE_SIZE // patch
        if count % side**2:
            raise InputError(
                f'pos_embed of {count} patches is not one of {PUBLISHED_IMAGE_SIZE} px '
                f'({side} x {side} patches a frame); --from-frames tells how many frames it is for'
            )
        return count // side**2, side

    def _resize_tables(self) -> None:
        """Relative position tables; of a detector those of its global blocks, the longest."""
        kernel = self.weights[self._prefix + 'patch_embed.proj.weight']
        grid = self._target_grid(kernel.shape[-1])
        rule = self.changes.rel_pos_rule
        for axis, side in zip('hw', grid):
            tables = [n for n in self.weights if n.endswith(f'.attn.rel_pos_{axis}')]
            longest = max((len(self.weights[n]) for n in tables), default=0)
            for name in tables:
                table = self.weights[name]
                if len(table) == longest or self.kind != 'detector':
                    resized = resize_rel_pos(table, 2 * side - 1, rule or 'linear')
                    self._replace(name, resized, f'{rule or "linear"}')
        joint = [n for n in self.weights if n.endswith('.attn.relative_position_bias_table')]
        for name in joint:
            self._resize_joint_table(name, grid, rule or 'geometric')

    def _resize_joint_table(self, name: str, grid: Grid, rule: str) -> None:
        """BEiT's table (offsets + 3, heads), whose last rows are those of the class token.

        The indices into it go, since loaders make them anew (EVA-01/seg/mmcv_custom/checkpoint.py).
        """
        table = self.weights[name]
        offsets, class_token = table[:-3], table[-3:]
        side = square_side(len(offsets))
        target = (2 * grid[0] - 1, 2 * grid[1] - 1)
        if target == (side, side):
            return
        resized = resize_grid(offsets.reshape(side, side, -1), target, rule).flatten(0, 1)
        self._replace(name, torch.cat((resized, class_token)), rule)
        index = name.replace('relative_position_bias_table', 'relative_position_index')
        self._remove([index] if index in self.weights else [])

    # ---------------------------------------------------------------------------------- head

    def _select_classes(self) -> None:
        rows = class_rows(self.weights, self.kind)
        counts = {name: len(self.weights[name]) - extra for name, extra in rows.items()}
        shapes = {name: shape_text(self.weights[name].shape) for name in rows}
        if len(set(counts.values())) > 1:
            raise InputError(f'parts of the head differ in their classes:\n{listing(shapes)}')
        if not rows:
            self._refuse_options_of_heads()
            return
        before = next(iter(counts.values()))
        self.report.classes = (before, before)
        if self.changes.head_rows is not None:
            index = _row_index(self.changes.head_rows, before, shapes)
            for name, extra in rows.items():
                self._select_rows(name, index, extra)
            self.report.classes, self.report.head_rows = (before, len(index)), index.tolist()
        self._require_classes(rows)

    def _require_classes(self, rows: Iterable[str]) -> None:
        found, wanted = self.report.classes[1], self.changes.num_classes
        if wanted not in (None, found):
            shapes = {name: shape_text(self.weights[name].shape) for name in rows}
            raise InputError(
                f'the head is of {found} classes, not of {wanted}:\n{listing(shapes)}\n'
                '--drop-head leaves it out, --head-rows FILE selects rows'
            )

    def _refuse_options_of_heads(self) -> None:
        given = {'--head-rows': self.changes.head_rows, '--num-classes': self.changes.num_classes}
        for option, value in given.items():
            if value is None:
                continue
            text = f'{option}: no head of classes is in this {self.kind} checkpoint'
            if self.kind == 'clip_vision' and 'head.weight' in self.weights:
                text += '; --kind classifier takes its head as one of classes, not as a projection'
            raise InputError(text)

    def _select_rows(self, name: str, index: Tensor, extra: int) -> None:
        tensor = self.weights[name]
        rest = torch.arange(len(tensor) - extra, len(tensor))
        selected = tensor[torch.cat((index, rest)).to(tensor.device)]
        how = f'{len(index)} of {len(tensor) - extra} classes'
        # Told even where the shape stays: the rows may stand in another order.
        self.report.resized[name] = (tuple(tensor.shape), tuple(selected.shape), how)
        self.weights[name] = selected

    # ---------------------------------------------------------------------- precision, names

    def _cast(self) -> None:
        dtype = self.changes.dtype
        for name, tensor in self.weights.items():
            if dtype is None or not tensor.is_floating_point() or tensor.dtype == dtype:
                continue
            cast = cast_tensor(name, tensor, dtype)
            before = self.report.cast.get(name, (tensor.dtype,))[0]
            self.report.cast[name] = (before, dtype)
            self.weights[name] = cast
        self.report.cast = {k: v for k, v in self.report.cast.items() if v[0] != v[1]}

    def _rename(self, to: str) -> Weights:
        final = self._target_names(to)
        report = self.report
        changed = {*report.resized, *report.cast}
        for name, new in final.items():
            if self.original[name] != new:
                report.renamed[self.original[name]] = new
            elif name not in changed:
                report.kept += 1
        return self.result

    def _target_names(self, to: str) -> dict[str, str]:
        """Published name -> name in the result, which lies in ``result`` afterwards."""
        if to == 'timm':
            return self._to_timm()
        names = {name: name for name in self.weights}
        if to == 'mm' and self.kind in TABLES:
            names = {old: new for new, old in TABLES[self.kind].to_mm(names).items()}
        self.result = {new: self.weights[old] for old, new in names.items()}
        return names

    def _to_timm(self) -> dict[str, str]:
        beside = [name for name in self.weights if name.startswith(PRETRAINING_PARTS)]
        if beside and self.kind in ('mim', 'mae'):
            shapes = {name: shape_text(self.weights[name].shape) for name in beside}
            raise InputError(
                f'timm has no place for {len(beside)} parts of pretraining:\n{listing(shapes)}\n'
                '--drop-pretraining-parts leaves them out'
            )
        self.result = to_timm(self.weights, self.kind)
        new_names = {id(tensor): name for name, tensor in self.result.items()}
        names = {k: new_names[id(v)] for k, v in self.weights.items() if id(v) in new_names}
        folded = {k: tuple(v.shape) for k, v in self.weights.items() if k not in names}
        if folded:
            self.report.folded = folded
            computed = [name for name in self.result if name not in names.values()]
            self.report.notes.append(
                f'{", ".join(computed)} hold the normalisation and the layer of the linear probe '
                'as one: equal in evaluation, and no conversion takes them apart again'
            )
        return names


def require_one_of(option: str, value: str | None, known: Iterable[str]) -> None:
    """Refuse a value of an option that is none of the known ones; None is fine.

    Raises:
        InputError: it is another.
    """
    if value is not None and value not in known:
        raise InputError(f'--{option} {value}: expected one of {", ".join(known)}')


def cast_tensor(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in another precision.

    Raises:
        InputError: a finite value is beyond the range of ``dtype``; the name is told.
    """
    cast = tensor.to(dtype)
    finite = tensor.isfinite()
    if not torch.equal(cast.isfinite(), finite):
        largest = tensor[finite].abs().max().item()
        raise InputError(f'{name} holds {largest:.3g}, beyond the range of {_dtype(dtype)}')
    return cast


def _divide(value: int, by: int, what: str, into: str) -> int:
    if value % by:
        raise InputError(f'{what} is not divisible into {into} of {by}')
    return value // by


def _row_index(rows: Tensor | Sequence[int], classes: int, shapes: Mapping[str, str]) -> Tensor:
    """Indices (K,) int64 of the head's rows to keep."""
    rows = torch.as_tensor(rows)
    if rows.ndim != 1 or not len(rows) or rows.is_floating_point():
        raise InputError(
            f'--head-rows: expected a list of indices or a boolean mask, got shape '
            f'{shape_text(rows.shape)} of {_dtype(rows.dtype)}'
        )
    if rows.dtype == torch.bool:
        if len(rows) != classes:
            raise InputError(
                f'--head-rows: a mask of {len(rows)} for a head of {classes} classes:\n'
                + listing(shapes)
            )
        rows = rows.nonzero()[:, 0]
    if len(rows) == 0 or rows.min() < 0 or rows.max() >= classes:
        found = f'{int(rows.min())} ... {int(rows.max())}' if len(rows) else 'none'
        raise InputError(
            f'--head-rows: rows {found} of a head of {classes} classes:\n{listing(shapes)}'
        )
    return rows.long()


# ----------------------------------------------------------------------------------- wording


def shape_text(shape: Sequence[int]) -> str:
    """(2, 3) -> '2 x 3'."""
    return ' x '.join(map(str, shape)) or 'a number'


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix('torch.')


def _template(name: str) -> str:
    return re.sub(r'\d+', '#', name)


def _count(texts: Iterable[str]) -> list[str]:
    counts: dict[str, int] = {}
    for text in texts:
        counts[text] = counts.get(text, 0) + 1
    return [f'{text} ({n})' if n > 1 else text for text, n in counts.items()]


def _fold(texts: Mapping[str, str]) -> list[str]:
    """'name: text' lines; names that differ in numbers alone share one."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, text in texts.items():
        groups.setdefault((_template(name), text), []).append(name)
    rows = []
    for (_, text), names in groups.items():
        row = _shared(names)
        rows += _count([f'{row}: {text}' if text else row] * len(names))
    return rows


def _shared(names: Sequence[str]) -> str:
    """'a.1.b.0', 'a.1.b.1' -> 'a.1.b.#', for names that differ in numbers alone."""
    columns = zip(*(re.findall(r'\d+', name) for name in names))
    numbers = iter([column[0] if len(set(column)) == 1 else '#' for column in columns])
    return re.sub(r'\d+', lambda match: next(numbers), names[0])


def listing(texts: Mapping[str, str]) -> str:
    """Indented 'name: text' lines, folded and capped, for messages."""
    lines = _fold(texts)
    more = [f'... and {len(lines) - _SHOWN} more lines'] if len(lines) > _SHOWN else []
    return '\n'.join(f'  {line}' for line in lines[:_SHOWN] + more)


def _renaming(old: str, new: str) -> str:
    """'backbone.net.pos_embed', 'backbone.pos_embed' -> 'backbone.net.* -> backbone.*'."""
    olds, news = old.split('.'), new.split('.')
    common = 0
    while common < min(len(olds), len(news)) and olds[-1 - common] == news[-1 - common]:
        common += 1
    if len(olds) - common < 2 or len(news) - common < 1:
        common -= 1  # one part more tells which names are meant
    if common < 1:
        return f'{_template(old)} -> {_template(new)}'
    return ' -> '.join(_template('.'.join([*parts[:-common], '*'])) for parts in (olds, news))
