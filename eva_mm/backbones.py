"""EVA as a plain backbone for any OpenMMLab config (mmpretrain's and mmseg's too)."""

from collections.abc import Sequence

from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor

from eva_mm import engine  # noqa: F401  (safe checkpoints, layer decay)
from eva_mm.engine.strict_loading import PARTS_OF_OTHER_TASKS, StrictLoading
from eva_mm.vit import EVAVisionTransformer, ViTSize


@MODELS.register_module()
class EVAViT(StrictLoading, EVAVisionTransformer, BaseModule):
    """EVA's ViT as a backbone: dense maps of chosen blocks, or one feature per image.

    Registered in mmengine's root registry, so that every OpenMMLab package finds it by
    ``type='mmengine.EVAViT'`` (or ``'EVAViT'``) after
    ``custom_imports = dict(imports=['eva_mm.backbones'])``.

    Args:
        size: a name of :data:`eva_mm.vit.SIZES` or a :class:`~eva_mm.vit.ViTSize`.
        out_type: 'maps' (one (B, D, h, w) per entry of ``out_indices``), 'cls' (class token after
            the final norm) or 'mean' (normalised mean of the patch tokens); the last two give
            (B, D).
        out_indices: blocks whose maps are returned, from 0; negative ones count from the end.
        out_norm: apply the final ``norm`` to the last block's map, with ``out_type='maps'``.
        freeze: no parameter learns and drop path is off.
        init_cfg: mmengine initialisation, e.g.
            ``dict(type='Pretrained', checkpoint='eva://eva_psz14')``.
        **kwargs: see :class:`~eva_mm.vit.EVAVisionTransformer` (``img_size``, ``patch_size``,
            ``drop_path_rate``, ``activation_checkpointing``, ...); ``allowed_missing`` and
            ``allowed_unexpected``: see :class:`~eva_mm.engine.strict_loading.StrictLoading`.

    Raises:
        ValueError: unknown ``out_type``, or ``out_norm`` with another one than 'maps'.
    """

    # New layers that start at their initial values, and parts of other tasks' heads.
    may_be_missing = ('fc_norm.*', 'head.*', 'blocks.*.attn.rel_pos_?', 'blocks.*.gamma_?')
    may_be_unexpected = PARTS_OF_OTHER_TASKS

    def __init__(
        self,
        size: str | ViTSize = 'giant',
        *,
        out_type: str = 'maps',
        out_indices: Sequence[int] = (-1,),
        out_norm: bool = False,
        freeze: bool = False,
        init_cfg: dict | None = None,
        **kwargs,
    ):
        if out_norm and not kwargs.get('class_token', True):
            raise ValueError('out_norm=True needs class_token=True')
        if out_type not in ('maps', 'cls', 'mean') or (out_norm and out_type != 'maps'):
            raise ValueError(
                f"out_type should be 'maps', 'cls' or 'mean', and out_norm goes with 'maps' only; "
                f'got out_type={out_type!r}, out_norm={out_norm}'
            )
        pooling = {'maps': 'cls' if out_norm else None}.get(out_type, out_type)
        super().__init__(size, pooling=pooling, init_cfg=init_cfg, **kwargs)
        self.out_type = out_type
        self.out_indices = tuple(out_indices)
        self.out_norm = out_norm
        self.frozen = freeze
        if freeze:
            self.requires_grad_(False)
        if out_type == 'maps':
            # No output depends on later blocks; DDP refuses parameters without a gradient.
            last = max(i % self.size.depth for i in self.out_indices)
            self.blocks[last + 1 :].requires_grad_(False)

    def train(self, mode: bool = True) -> 'EVAViT':
        """A frozen backbone stays in evaluation mode."""
        return super().train(mode and not self.frozen)

    def _normalised(self, feature: Tensor) -> Tensor:
        return self.norm(feature.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Normalised image (B, 3, H, W) -> a tuple, as OpenMMLab's necks and heads take it."""
        if self.out_type != 'maps':
            return (self.pool(self.forward_features(image)),)
        maps = self.forward_intermediates(image, self.out_indices)
        if self.out_norm:
            last = (-1, len(self.blocks) - 1)
            maps = [self._normalised(m) if i in last else m for i, m in zip(self.out_indices, maps)]
        return tuple(maps)
