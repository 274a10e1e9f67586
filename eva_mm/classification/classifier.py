"""EVA's image classifier: fine-tuned whole, or a linear probe on frozen features.

Source: github.com/baaivision/EVA, EVA-01/eva/modeling_finetune.py and run_class_finetuning.py.

Shape letters: B batch, D width, K classes.
"""

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor, nn

from eva_mm.engine.strict_loading import StrictLoading
from eva_mm.errors import InputError
from eva_mm.vit import EVAVisionTransformer, ViTSize

_PROBE_STD = 0.01  # of the initial weights of a linear probe


@MODELS.register_module()
class EVAClassifier(StrictLoading, EVAVisionTransformer, BaseModel):
    """EVA's ViT with a linear classifier; its state dict is that of the published files.

    Args:
        size: a name of :data:`eva_mm.vit.SIZES` or a :class:`~eva_mm.vit.ViTSize`.
        num_classes: K.
        pooling: 'mean' (fine-tuning) or 'cls' (linear probe), see
            :class:`~eva_mm.vit.EVAVisionTransformer`.
        label_smoothing: share of the target spread evenly over all classes. Where the
            preprocessor mixes images it makes soft targets, smoothed already; its
            ``label_smoothing`` has to be this one.
        linear_probe: freeze all but ``head``, which is batch normalisation without affine
            parameters (``head.0``) and a linear layer (``head.1``). Batch statistics are those of
            one process, as published.
        data_preprocessor: see :class:`ClassificationDataPreprocessor`, which is the default.
        init_cfg: of mmengine.
        **kwargs: see :class:`~eva_mm.vit.EVAVisionTransformer` (``img_size``,
            ``drop_path_rate``, ``stop_grad_patch_embed``, ``activation_checkpointing``,
            ``head_init_scale`` ...); ``allowed_missing`` and ``allowed_unexpected``: see
            :class:`~eva_mm.engine.strict_loading.StrictLoading`.

    Raises:
        InputError: no classes, dense pooling, smoothing outside [0, 1), or mixing for another
            number of classes or with another smoothing.
    """

    # Pretraining's own parts, which every start from it leaves aside.
    may_be_unexpected = ('mask_token', 'lm_head.*', 'decoder_*', 'norm.*')

    def __init__(
        self,
        size: str | ViTSize = 'giant',
        *,
        num_classes: int,
        pooling: str = 'mean',
        label_smoothing: float = 0.0,
        linear_probe: bool = False,
        data_preprocessor: dict | nn.Module | None = None,
        init_cfg: dict | None = None,
        **kwargs,
    ):
        if num_classes < 1 or pooling not in ('mean', 'cls'):
            raise InputError(
                f"a classifier needs num_classes of at least 1 and pooling 'mean' or 'cls', got "
                f'num_classes={num_classes}, pooling={pooling!r}'
            )
        if not 0 <= label_smoothing < 1:
            raise InputError(f'label_smoothing should lie in [0, 1), got {label_smoothing}')
        super().__init__(
            size,
            num_classes=num_classes,
            pooling=pooling,
            data_preprocessor=data_preprocessor or dict(type='ClassificationDataPreprocessor'),
            init_cfg=init_cfg,
            **kwargs,
        )
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.linear_probe = linear_probe
        self._check_mixing()
        if linear_probe:
            self._make_probe()

    def _check_mixing(self) -> None:
        mixup = getattr(self.data_preprocessor, 'mixup', None)
        if mixup is None:
            return
        for key in ('num_classes', 'label_smoothing'):
            mixed, own = getattr(mixup, key), getattr(self, key)
            if mixed != own:
                raise InputError(
                    f'model.{key} is {own}, but model.data_preprocessor.mixup.{key} is {mixed}: '
                    f'set both alike'
                )

    def _make_probe(self) -> None:
        """Published probe, EVA-01/eva/run_class_finetuning.py."""
        norm = nn.BatchNorm1d(self.size.embed_dim, affine=False, eps=1e-6)
        nn.init.trunc_normal_(self.head.weight, std=_PROBE_STD)
        nn.init.zeros_(self.head.bias)
        self.requires_grad_(False)
        self.head.requires_grad_(True)
        self.head = nn.Sequential(norm, self.head)

    def has_initial_weights(self) -> bool:
        """What a checkpoint lacks may be trained, but not tested."""
        return self.is_init

    def extract_feat(self, image: Tensor) -> Tensor:
        """Normalised image (B, 3, H, W) -> pooled feature (B, D)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.linear_probe):
            return self.pool(self.forward_features(image))

    def forward(
        self,
        image: Tensor,
        label: Tensor | None = None,
        mode: str = 'tensor',
        img_path: list[str] | None = None,
    ) -> Tensor | dict[str, Tensor] | list[dict]:
        """Run the model as mmengine's loops ask for.

        Args:
            image: (B, 3, H, W), normalised.
            label: class numbers (B,), or soft targets (B, K) as mixing makes them.
            mode: 'tensor', 'loss' or 'predict'.
            img_path: of each image.

        Returns:
            'tensor': logits (B, K). 'loss': ``dict(loss=...)``, fp32. 'predict': per image a
            dictionary of ``logits`` (K,) in fp32 and, as far as given, ``label`` (a number on the
            model's device) and ``img_path``.

        Raises:
            InputError: unknown mode, or 'loss' without labels.
        """
        logits = self.head(self.extract_feat(image))
        if mode == 'tensor':
            return logits
        if mode == 'loss':
            return dict(loss=self.loss(logits, label))
        if mode != 'predict':
            raise InputError(f"mode should be 'tensor', 'loss' or 'predict', got {mode!r}")
        given = {k: v for k, v in dict(label=label, img_path=img_path).items() if v is not None}
        return [
            dict(logits=row, **{key: values[index] for key, values in given.items()})
            for index, row in enumerate(logits.float())
        ]

    def loss(self, logits: Tensor, label: Tensor | None) -> Tensor:
        """Cross-entropy in fp32: with label smoothing for numbers, plain for soft targets.

        Args:
            logits: (B, K).
            label: (B,) or (B, K).
        """
        if label is None:
            raise InputError('training needs labels: the data set gives none')
        smoothing = self.label_smoothing if label.ndim == 1 else 0.0
        # The published runs take the softmax of fp16 logits, which only rounds it.
        with torch.autocast(logits.device.type, enabled=False):
            return F.cross_entropy(logits.float(), label, label_smoothing=smoothing)
