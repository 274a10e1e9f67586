"""Warn of config keys and options without effect, which mmengine takes in silence.

Every dictionary with a ``type`` is held against the signature of what that type builds, with
``**kwargs`` followed to the base classes; top-level keys are held against the Runner's. Where
arbitrary names are legitimate (variables of a config, keyword arguments that a class forwards),
only a name that is nearly a known one is told.
"""

from __future__ import annotations

import difflib
import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from mmengine import registry as mmengine_registry
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import Registry
from mmengine.runner import Runner

from .batch_scaling import as_list

# Keys that a builder takes out, or a caller reads, before the component sees the dictionary.
_EVERYWHERE = {'type', '_scope_', '_delete_'}
_BY_ROLE = {
    'param_scheduler': {'convert_to_iter_based'},
    'optim_wrapper': {'constructor', 'paramwise_cfg'},
    'custom_hooks': {'priority'},
    'default_hooks': {'priority'},
    'init_cfg': {'override', 'layer', 'bias', 'bias_prob'},
    'override': {'name', 'bias', 'bias_prob'},
    'visualizer': {'name'},
    'runner': {'runner_type'},
}
# Names at the top of a config that the Runner does not take but a tool or a builder reads.
_READ_LATER = {
    'accumulate', 'auto_scale_lr', 'base_batch_size', 'compile', 'custom_imports', 'env_cfg',
    'find_unused_parameters', 'fit_config', 'model_wrapper_cfg', 'own_class_templates', 'own_data',
    'predictor', 'runner_type', 'tta_model', 'tta_pipeline', 'variants',
}  # fmt: skip
# Names that configs use for themselves, by habit.
_VARIABLES = {
    'backend_args', 'data_root', 'dataset_type', 'test_pipeline', 'train_pipeline', 'val_pipeline',
    'vis_backends',
}  # fmt: skip
_TOLD = 5  # places that a warning names
# Dictionaries without a type whose keys are read one by one, by the key that holds them. mmdet's
# train_cfg and test_cfg of two-stage detectors, and what EVACascadeRoIHead adds to them.
_STAGE = {'assigner', 'sampler', 'allowed_border', 'pos_weight', 'mask_size', 'debug'}
_PROPOSALS = {
    'nms_pre', 'nms_post', 'max_num', 'max_per_img', 'nms', 'nms_thr', 'min_bbox_size',
    'nms_across_levels', 'score_thr',
}  # fmt: skip
_PLAIN = {
    'rpn': _STAGE | _PROPOSALS,
    'rpn_proposal': _PROPOSALS,
    'rcnn': _STAGE | {'score_thr', 'nms', 'max_per_img', 'mask_thr_binary', 'maskness', 'rcnn_idx'},
    'nms': {
        'type', 'iou_threshold', 'iou_thr', 'max_num', 'split_thr', 'class_agnostic', 'offset',
        'method', 'sigma', 'min_score', 'score_threshold',
    },
    'filter_cfg': {'filter_empty_gt', 'min_size', 'bbox_min_size'},
    'paramwise_cfg': {
        'layer_decay', 'no_decay', 'depth_overrides', 'lr_factors', 'custom_keys', 'bias_lr_mult',
        'bias_decay_mult', 'norm_decay_mult', 'flat_decay_mult', 'dwconv_decay_mult',
        'dcn_offset_lr_mult', 'bypass_duplicate', 'num_layers', 'decay_rate', 'decay_type',
    },
    'clip_grad': {
        'type', 'max_norm', 'norm_type', 'error_if_nonfinite', 'foreach', 'clip_value',
    },
    'env_cfg': {'cudnn_benchmark', 'mp_cfg', 'dist_cfg', 'resource_limit'},
    'auto_scale_lr': {'enable', 'base_batch_size'},
}  # fmt: skip
_IN_DETECTORS = {'rpn', 'rpn_proposal', 'rcnn'}  # below model.train_cfg and model.test_cfg
_LOOPS = ('train_cfg', 'val_cfg', 'test_cfg')
_LOADER = {
    'batch_size', 'num_workers', 'sampler', 'batch_sampler', 'dataset', 'collate_fn',
    'persistent_workers', 'pin_memory', 'drop_last', 'timeout', 'worker_init_fn',
    'multiprocessing_context', 'generator', 'prefetch_factor', 'pin_memory_device', 'shuffle',
    'num_batch_per_epoch', 'in_order',
}  # fmt: skip


def check_config(cfg: Config) -> list[str]:
    """Warn of each key that nothing takes.

    Args:
        cfg (Config): Merged, with its ``custom_imports`` imported.

    Returns:
        list[str]: The warnings; each names the key's place and the nearest known name.
    """
    classes = _Classes(cfg.get('default_scope'))
    warnings = list(_check_top(cfg))
    for key, value in cfg.items():
        warnings += _check_node(value, key, key, classes)
    for text in warnings:
        print_log(text, logger='current', level=logging.WARNING)
    return warnings


def check_options(cfg: Config, overrides: Mapping[str, Any]) -> list[str]:
    """Warn of each `--cfg-options` entry that is misspelt, or does not do what one may think.

    The latter are variables that the config has used while it was read, and a length of the run
    without that of its schedule.

    Args:
        cfg (Config): Before the options are merged.
        overrides (Mapping): Dotted key -> value.

    Returns:
        list[str]: The warnings.
    """
    warnings = [
        *_misspelt_options(cfg, overrides),
        *_spent_variables(cfg, overrides),
        *_another_length(cfg, overrides),
    ]
    for text in warnings:
        print_log(text, logger='current', level=logging.WARNING)
    return warnings


def _misspelt_options(cfg: Config, overrides: Iterable[str]) -> Iterator[str]:
    """One for each dotted key that the config lacks while its level has a near one."""
    for dotted in overrides:
        node: Any = cfg
        parts = dotted.split('.')
        for index, part in enumerate(parts):
            if isinstance(node, Sequence) and not isinstance(node, str) and part.isdigit():
                node = node[int(part)] if int(part) < len(node) else None
            elif isinstance(node, (Mapping, Config)) and part in node:
                node = node[part]
            else:
                known = [str(k) for k in node] if isinstance(node, (Mapping, Config)) else []
                if near := _nearest(part, known, 0.7):
                    meant = '.'.join([*parts[:index], near, *parts[index + 1 :]])
                    yield f'--cfg-options {dotted} is new to the config; {meant}?'
                break


def _spent_variables(cfg: Config, overrides: Iterable[str]) -> Iterator[str]:
    """One for each top-level name that the config alone uses, which is over when options come."""
    read = _runner_arguments() | _READ_LATER
    if 'fit_config' in cfg:
        read.add('data_root')
    for name in dict.fromkeys(dotted.partition('.')[0] for dotted in overrides):
        if name not in cfg or name in read:
            continue
        places = [path for path, value in _leaves(cfg) if _made_from(value, cfg[name])]
        if len(places) > _TOLD:
            places[_TOLD:] = [f'{len(places) - _TOLD} more']
        instead = f'; the places that hold it: {", ".join(places)}' if places else ''
        yield (
            f'--cfg-options {name} changes nothing: it is a variable, used while the config was '
            f'read. Set the keys that were made from it{instead}'
        )


def _another_length(cfg: Config, overrides: Mapping[str, Any]) -> Iterator[str]:
    """One for a run that ends before, or goes on behind, the end of its schedule."""
    length = overrides.get('train_cfg.max_iters')
    scheduled = any(key.startswith('param_scheduler') for key in overrides)
    # A config that fits itself to its data fits the schedule to the length.
    if not isinstance(length, int) or scheduled or 'fit_config' in cfg:
        return
    schedulers = [s for s in as_list(cfg.get('param_scheduler')) if not s.get('by_epoch', True)]
    ends = [s['end'] for s in schedulers if 'end' in s]
    last = max([*ends, *(m for s in schedulers for m in s.get('milestones', ()))], default=length)
    before = (cfg.get('train_cfg') or {}).get('max_iters')
    if last > length or (before != length and before in ends):
        yield (
            f'--cfg-options train_cfg.max_iters={length} changes the length of the run and not its '
            f'learning rate, whose schedule goes to iteration {last:,}: set param_scheduler too'
        )


def _leaves(node: Any, path: str = '') -> Iterator[tuple[str, Any]]:
    """Dotted key and value of all that is below the top and no container."""
    if isinstance(node, (Mapping, Config)):
        items = node.items()
    elif isinstance(node, (list, tuple)):
        items = enumerate(node)
    else:
        items = ()
        if '.' in path:
            yield path, node
    for key, value in items:
        yield from _leaves(value, f'{path}.{key}' if path else str(key))


def _made_from(value: Any, variable: Any) -> bool:
    """Whether a text begins with the variable's; equal numbers may be so by chance."""
    return isinstance(variable, str) and isinstance(value, str) and value.startswith(variable)


class _Classes:
    """Finds what a ``type`` builds, in any registry of the config's scope and of mmengine."""

    def __init__(self, scope: str | None):
        roots = [r for r in vars(mmengine_registry).values() if isinstance(r, Registry)]
        self._registries = list(roots)
        for root in roots:
            for name, child in root.children.items():
                if scope is None or name == scope:
                    child.import_from_location()
                self._registries.append(child)

    def find(self, kind: Any) -> list[Callable]:
        """Classes and functions of that name; several where registries share a name."""
        if not isinstance(kind, str):
            return [kind]
        name = kind.rpartition('.')[2]
        found = [r.module_dict[name] for r in self._registries if name in r.module_dict]
        return list(dict.fromkeys(found))


def _runner_arguments() -> set[str]:
    return set(inspect.signature(Runner.__init__).parameters) - {'self', 'cfg'}


def _check_top(cfg: Config) -> Iterator[str]:
    known = _runner_arguments() | _READ_LATER | _VARIABLES
    for key in cfg:
        # A config may hold variables of any name: only what is nearly a known key is told.
        if key not in known and (near := _nearest(key, known, 0.85)):
            yield f'config key {key!r} is nothing that the Runner takes; {near!r}?'


def _check_node(node: Any, path: str, role: str, classes: _Classes) -> list[str]:
    """Warnings of a value and all below it; ``role`` is the nearest key above that is a name."""
    if isinstance(node, (list, tuple)):
        return [
            text
            for index, item in enumerate(node)
            for text in _check_node(item, f'{path}[{index}]', role, classes)
        ]
    if not isinstance(node, Mapping):
        return []
    warnings = list(_check_keys(node, path, role, classes))
    for key, value in node.items():
        warnings += _check_node(value, f'{path}.{key}', str(key), classes)
    return warnings


def _check_keys(node: Mapping, path: str, role: str, classes: _Classes) -> Iterator[str]:
    builds = classes.find(node['type']) if 'type' in node and role not in _PLAIN else []
    if role.endswith('_dataloader'):
        yield from _unknown(node, path, 'a data loader', _LOADER, closed=True)
    elif builds:
        top = path.partition('.')[0].partition('[')[0]
        known = _EVERYWHERE | _BY_ROLE.get(role, _BY_ROLE.get(top, set()))
        # Layers are built by helpers with arguments of their own.
        layer = role == 'dcn' or (role.endswith('_cfg') and role not in _LOOPS)
        closed = not layer
        known |= set() if closed else {'requires_grad', 'deformable_groups'}
        for build in builds:
            names, is_closed = accepted_arguments(build)
            known |= names
            closed = closed and is_closed
        yield from _unknown(node, path, f'{node["type"]}', known, closed)
    elif role in _PLAIN and (role not in _IN_DETECTORS or '_cfg.' in path):
        yield from _unknown(node, path, role, _PLAIN[role] | _EVERYWHERE, closed=False)


def _unknown(node: Mapping, path: str, owner: str, known: set[str], closed: bool) -> Iterator[str]:
    for key in node:
        if not isinstance(key, str) or key in known:
            continue
        # Where other names are legitimate, a near one is a mistake only when it is very near.
        near = _nearest(key, known, 0.75 if closed else 0.85)
        if near:
            yield f'config key {path}.{key} is nothing that {owner} takes; {near!r}?'
        elif closed:
            choices = ', '.join(sorted(known - _EVERYWHERE)[:12])
            yield f'config key {path}.{key} is nothing that {owner} takes (it takes {choices} ...)'


def accepted_arguments(build: Callable) -> tuple[set[str], bool]:
    """Names of the arguments that a class or function takes.

    Returns:
        tuple[set[str], bool]: The names, and whether there can be no others: a ``**kwargs`` is
        followed to the base classes; the set is open when one is left at the end.
    """
    names: set[str] = set()
    if not inspect.isclass(build):
        return _parameters(build)
    for base in inspect.getmro(build):
        init = base.__dict__.get('__init__')
        if init is None:
            continue
        more, closed = _parameters(init)
        names |= more
        if closed:
            return names, True
    return names, False


def _parameters(function: Callable) -> tuple[set[str], bool]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # built in C
        return set(), False
    names = {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    return names - {'self'}, not any(p.kind is p.VAR_KEYWORD for p in parameters)


def _nearest(key: str, known: Iterable[str], cutoff: float) -> str | None:
    near = difflib.get_close_matches(key, sorted(known), n=1, cutoff=cutoff)
    return near[0] if near else None
