"""Layer-wise learning-rate decay, asked of the model, with the exceptions kept as data.

The model knows how deep a parameter lies and answers `get_layer_depth(name, prefix)`; the config
says by how much the rate falls per layer and which parameters are spared weight decay. The
published runs differ in exactly these two (github.com/baaivision/EVA):

* detection (EVA-01/det, the LazyConfigs of ViTDet): decay on *every* parameter;
* pre-training and classification (EVA-01/eva/optim_factory.py): none on 1-D tensors, biases,
  `pos_embed`, `cls_token`;
* segmentation (EVA-01/seg/mmcv_custom/layer_decay_optimizer_constructor.py): none on 1-D tensors
  and biases, and five modules of the decoder learn at the lowest rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

_KNOWN = ('layer_decay', 'no_decay', 'depth_overrides', 'lr_factors')
_KNOWN_NO_DECAY = ('one_dim', 'bias', 'names')


class ParamRow(NamedTuple):
    """One parameter as the optimizer sees it: its name, lr, weight decay, and group's name."""

    name: str
    lr: float
    weight_decay: float
    group: str


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class EVALayerDecay(DefaultOptimWrapperConstructor):
    """Optimizer-wrapper constructor with layer-wise learning-rate decay.

    A parameter of layer id `i` learns at `lr * layer_decay ** (top - i)`. Ids come from the model's
    own `get_layer_depth(param_name, prefix='') -> (layer_id, num_layers)` (`top = num_layers - 1`,
    the contract of mmpretrain), else from its `backbone`'s, and then everything outside the
    backbone is at the top. Parameters that need no gradient are left out.

    Args:
        optim_wrapper_cfg (dict): Config of the wrapper, with `optimizer` and its `lr`.
        paramwise_cfg (dict): Four optional keys:

            - `layer_decay` (float): Factor per layer in (0, 1]. Defaults to 1.0: one rate for all.
            - `no_decay` (dict): Which parameters get weight decay 0. `one_dim` (bool): tensors of
              one dimension or none; `bias` (bool): names ending in `bias`; `names` (list[str]):
              whole parameter names or their last dotted parts (`'pos_embed'`). All off by default.
            - `depth_overrides` (dict[str, int]): Dotted prefix of parameter names -> layer id that
              replaces the model's answer. The longest prefix wins.
            - `lr_factors` (dict[str, float]): Dotted prefix of parameter names -> factor above 0 on
              top of the layer's. The longest prefix wins.

    Raises:
        ValueError: For an unknown key, a factor outside (0, 1], an optimizer without `lr`, or a
            name that fits no parameter.
        TypeError: If depths are needed and neither the model nor its backbone tells them.

    Examples:
        >>> optim_wrapper = dict(
        ...     constructor='EVALayerDecay',
        ...     optimizer=dict(type='AdamW', lr=3e-5, weight_decay=0.05),
        ...     paramwise_cfg=dict(
        ...         layer_decay=0.95,
        ...         no_decay=dict(one_dim=True, bias=True, names=['pos_embed', 'cls_token']),
        ...     ),
        ... )
    """

    def _validate_cfg(self) -> None:
        cfg = self.paramwise_cfg
        if not isinstance(cfg, Mapping):
            raise TypeError(f'paramwise_cfg should be a dict, but got {type(cfg).__name__}')
        _reject_unknown('paramwise_cfg', cfg, _KNOWN)
        no_decay = cfg.get('no_decay') or {}
        _reject_unknown('paramwise_cfg.no_decay', no_decay, _KNOWN_NO_DECAY)
        if self.base_lr is None:
            raise ValueError('EVALayerDecay needs optim_wrapper.optimizer.lr, but found none')
        self.layer_decay = float(cfg.get('layer_decay', 1.0))
        if not 0.0 < self.layer_decay <= 1.0:
            raise ValueError(
                f'paramwise_cfg.layer_decay should lie in (0, 1], but got {self.layer_decay}'
            )
        self.spare_one_dim = bool(no_decay.get('one_dim', False))
        self.spare_bias = bool(no_decay.get('bias', False))
        self.spare_names = tuple(no_decay.get('names', ()))
        self.depth_overrides = dict(cfg.get('depth_overrides') or {})
        self.lr_factors = dict(cfg.get('lr_factors') or {})
        for head, factor in self.lr_factors.items():
            if not factor > 0:
                raise ValueError(
                    f'paramwise_cfg.lr_factors: the factor of {head!r} should be above 0, but got '
                    f'{factor}'
                )

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the optimizer wrapper of a model, bare or wrapped for data parallelism.

        Args:
            model (nn.Module): On any device, the meta device included.

        Returns:
            OptimWrapper: Its groups run from the lowest rate to the highest. Besides `params`, `lr`
            and `weight_decay`, each holds `name`, `lr_scale` and `param_names`.
        """
        # The base class skips `add_params`, hence the groups, when paramwise_cfg is empty.
        self.paramwise_cfg = self.paramwise_cfg or {'layer_decay': 1.0}
        return super().__call__(model)

    def add_params(self, params: list[dict], module: nn.Module, **_: Any) -> None:
        """Append the parameter groups of a whole model to `params`."""
        self._check_names([name for name, _ in module.named_parameters()])
        depth_of, top = self._depth_lookup(module)
        groups: dict[tuple[float, bool], dict] = {}
        for name, param in module.named_parameters():
            if not param.requires_grad:
                continue
            depth = depth_of(name)
            scale = self.layer_decay ** (top - depth) * self._factor_of(name)
            spared = self._is_spared(name, param.ndim)
            if (scale, spared) not in groups:
                groups[scale, spared] = self._new_group(scale, spared)
            group = groups[scale, spared]
            group['params'].append(param)
            group['param_names'].append(name)
            group['depths'].add(depth)
        # Lowest rate first, since mmengine logs the first group's as `lr` beside `base_lr`.
        for (_, spared), group in sorted(groups.items()):
            depths = group.pop('depths')
            group['name'] = _group_name(min(depths), max(depths), spared)
            params.append(group)

    def _new_group(self, scale: float, spared: bool) -> dict:
        group = dict(
            params=[], param_names=[], depths=set(), lr_scale=scale, lr=self.base_lr * scale
        )
        if spared:
            group['weight_decay'] = 0.0
        elif self.base_wd is not None:
            group['weight_decay'] = self.base_wd
        return group

    def _factor_of(self, name: str) -> float:
        heads = [head for head in self.lr_factors if _is_head(head, name)]
        return self.lr_factors[max(heads, key=len)] if heads else 1.0

    def _is_spared(self, name: str, ndim: int) -> bool:
        return (
            (self.spare_one_dim and ndim <= 1)
            or (self.spare_bias and name.endswith('bias'))
            or any(_is_tail(tail, name) for tail in self.spare_names)
        )

    def _depth_lookup(self, model: nn.Module):
        """Return the function name -> layer id, and the top layer id."""
        answer, prefix = _depth_source(model)
        if answer is None:
            if self.layer_decay != 1.0:
                raise TypeError(
                    f'EVALayerDecay with layer_decay {self.layer_decay} needs '
                    f'get_layer_depth(param_name, prefix), but neither {type(model).__name__} nor '
                    f'its backbone has it'
                )
            answer, prefix = (lambda name, prefix: (0, 1)), ''
        top = answer(prefix + 'any', prefix)[1] - 1
        overrides = sorted(self.depth_overrides.items(), key=lambda item: -len(item[0]))

        def depth_of(name: str) -> int:
            for head, depth in overrides:
                if _is_head(head, name):
                    return depth
            return answer(name, prefix)[0] if name.startswith(prefix) else top

        return depth_of, top

    def _check_names(self, names: list[str]) -> None:
        """Fail on a name that fits no parameter: it is misspelt, and would do nothing."""
        for tail in self.spare_names:
            if not any(_is_tail(tail, name) for name in names):
                raise ValueError(f'paramwise_cfg.no_decay.names: {tail!r} fits no parameter')
        for key, heads in (
            ('depth_overrides', self.depth_overrides),
            ('lr_factors', self.lr_factors),
        ):
            for head in heads:
                if not any(_is_head(head, name) for name in names):
                    raise ValueError(f'paramwise_cfg.{key}: {head!r} fits no parameter')


def param_group_table(
    optim_wrapper: OptimWrapper, model: nn.Module | None = None
) -> list[ParamRow]:
    """List every parameter an optimizer updates with its rate, decay and group.

    Args:
        optim_wrapper (OptimWrapper): Wrapper of one optimizer, built by any constructor.
        model (nn.Module, optional): Names the parameters of groups without `param_names`.

    Returns:
        list[ParamRow]: One row per parameter tensor, in the order of the groups.
    """
    name_of = {id(p): n for n, p in model.named_parameters()} if model is not None else {}
    rows = []
    for index, group in enumerate(optim_wrapper.optimizer.param_groups):
        names = group.get('param_names') or [name_of.get(id(p), '?') for p in group['params']]
        title = group.get('name', f'group_{index}')
        # As float: a scheduler may hold the rate as a tensor.
        lr, decay = float(group['lr']), float(group.get('weight_decay', 0.0))
        rows += [ParamRow(name, lr, decay, title) for name in names]
    return rows


def _depth_source(model: nn.Module):
    """Return who answers for layer depths, and the prefix of the names it knows."""
    if hasattr(model, 'get_layer_depth'):
        return model.get_layer_depth, ''
    backbone = getattr(model, 'backbone', None)
    return getattr(backbone, 'get_layer_depth', None), 'backbone.'


def _group_name(low: int, high: int, spared: bool) -> str:
    layers = f'layer_{low}' if low == high else f'layers_{low}_to_{high}'
    return layers + ('_no_decay' if spared else '_decay')


def _is_head(head: str, name: str) -> bool:
    return name == head or name.startswith(head + '.')


def _is_tail(tail: str, name: str) -> bool:
    return name == tail or name.endswith('.' + tail)


def _reject_unknown(where: str, cfg: Mapping, known: tuple[str, ...]) -> None:
    unknown = sorted(set(cfg) - set(known))
    if unknown:
        raise ValueError(f'{where} has unknown keys {unknown}; known keys: {list(known)}')
