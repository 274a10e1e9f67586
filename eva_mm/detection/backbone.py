"""EVA as a detection backbone: the plain ViT with window attention (ViTDet, arXiv 2203.16527)."""

from collections.abc import Sequence

from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor

from eva_mm.engine.strict_loading import PARTS_OF_OTHER_TASKS, StrictLoading
from eva_mm.vit import Block, EVAVisionTransformer, ViTSize

# Published table resizing types (EVA-01/det/detectron2/modeling/backbone/utils.py) and ours.
REL_POS_INTERPOLATION = dict(vitdet='linear', beit='geometric_detector')


@MODELS.register_module()
class EVAViTDet(StrictLoading, EVAVisionTransformer, BaseModule):
    """EVA for detection: window blocks, a few global ones, decomposed relative positions.

    It returns one map of stride ``patch_size``; :class:`SimpleFeaturePyramid` makes levels of it.
    There is no class token and no final norm. ``pos_embed`` keeps the pretraining grid and is
    resized at every forward, so any input that divides into patches is taken.

    Args:
        size: a name of :data:`eva_mm.vit.SIZES` or a :class:`~eva_mm.vit.ViTSize`.
        img_size: side in pixels that the tables of the global blocks are made for.
        pretrain_img_size: side in pixels of the grid that ``pos_embed`` is made for.
        patch_size: side of a patch in pixels; published detectors use 16 (``eva_psz14to16``).
        window_size: side of the attention windows in patches.
        global_block_indexes: blocks with global attention; by default the last of every four.
        rel_pos_interpolation: how tables are resized to other grids: 'vitdet' (1-D linear) or
            'beit' (cubic on a geometric grid; the published evaluation at 1536 px).
        freeze_patch_embed: keep the patch embedding as loaded; the published detectors do.
        frozen_blocks: keep this many of the first blocks as loaded, and with them the embeddings
            below; nothing is kept for their backward pass. Their relative tables, which no
            published pretraining checkpoint has, stay at zero then; their drop path stays on.
        drop_path_rate, activation_checkpointing, **size_overrides: see
            :class:`~eva_mm.vit.EVAVisionTransformer`. ``allowed_missing`` and
            ``allowed_unexpected`` are those of :class:`StrictLoading`.
        init_cfg: mmengine initialisation, e.g. ``dict(type='Pretrained', checkpoint=...)``.

    Raises:
        ValueError: unknown ``size`` or ``rel_pos_interpolation``; a block index or number
            of frozen blocks out of range.
    """

    # Relative positions start at zero; the rest belongs to pretraining and classification.
    may_be_missing = ('blocks.*.attn.rel_pos_?', 'blocks.*.gamma_?')
    may_be_unexpected = PARTS_OF_OTHER_TASKS

    def __init__(
        self,
        size: str | ViTSize = 'giant',
        *,
        img_size: int = 1280,
        pretrain_img_size: int = 224,
        patch_size: int = 16,
        window_size: int = 16,
        global_block_indexes: Sequence[int] | None = None,
        rel_pos_interpolation: str = 'vitdet',
        freeze_patch_embed: bool = False,
        frozen_blocks: int = 0,
        drop_path_rate: float = 0.0,
        activation_checkpointing: bool | Sequence[int] = False,
        init_cfg: dict | None = None,
        **size_overrides,
    ):
        if rel_pos_interpolation not in REL_POS_INTERPOLATION:
            raise ValueError(
                f'rel_pos_interpolation should be one of {sorted(REL_POS_INTERPOLATION)}, '
                f'got {rel_pos_interpolation!r}'
            )
        self._window_size = window_size
        self._global_grid = (img_size // patch_size,) * 2
        self._global_block_indexes = global_block_indexes
        self._rel_pos_rule = REL_POS_INTERPOLATION[rel_pos_interpolation]
        super().__init__(
            size,
            img_size=pretrain_img_size,
            patch_size=patch_size,
            pooling=None,
            class_token=False,
            drop_path_rate=drop_path_rate,
            activation_checkpointing=activation_checkpointing,
            init_cfg=init_cfg,
            **size_overrides,
        )
        if freeze_patch_embed:
            self.patch_embed.requires_grad_(False)
        self._freeze(frozen_blocks)

    def _freeze(self, num_blocks: int) -> None:
        if not 0 <= num_blocks <= self.size.depth:
            raise ValueError(
                f'frozen_blocks should lie in [0, {self.size.depth}], got {num_blocks}'
            )
        if num_blocks:
            self.patch_embed.requires_grad_(False)
            self.pos_embed.requires_grad_(False)
            self.blocks[:num_blocks].requires_grad_(False)

    def _is_global(self, index: int) -> bool:
        if self._global_block_indexes is None:
            return index % 4 == 3
        indexes = list(self._global_block_indexes)
        if any(not 0 <= i < self.size.depth for i in indexes):
            raise ValueError(
                f'global_block_indexes {indexes} exceed a depth of {self.size.depth} blocks'
            )
        return index in indexes

    def _make_block(self, index: int) -> Block:
        window = 0 if self._is_global(index) else self._window_size
        return Block(
            **self._block_kwargs(index),
            window_size=window,
            rel_pos_grid=(window, window) if window else self._global_grid,
            rel_pos_rule=self._rel_pos_rule,
        )

    def forward(self, image: Tensor) -> tuple[Tensor]:
        """Normalised image (B, 3, H, W) -> one map (B, D, H / patch, W / patch) in a tuple."""
        return tuple(self.forward_intermediates(image, [len(self.blocks) - 1]))
