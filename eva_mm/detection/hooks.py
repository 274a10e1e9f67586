"""Hooks that hand facts of the training set to the model."""

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from .losses import FederatedLoss


@HOOKS.register_module()
class FederatedClassCountsHook(Hook):
    """Gives every :class:`FederatedLoss` the image counts of the training set's classes.

    They come from ``metainfo['image_counts']`` of the training set (see ``EVALVISDataset``).

    Raises:
        ValueError: the training set knows no image counts, or their number is not the number of
            classes.
    """

    priority = 'NORMAL'

    def before_train(self, runner: Runner) -> None:
        """Set the counts before the first iteration, also when a checkpoint brought others."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        losses = [m for m in model.modules() if isinstance(m, FederatedLoss)]
        counts = runner.train_dataloader.dataset.metainfo.get('image_counts')
        if losses and counts is None:
            raise ValueError(
                'FederatedLoss needs the number of training images of each class, but '
                f"metainfo['image_counts'] is absent from "
                f'{type(runner.train_dataloader.dataset).__name__}; use EVALVISDataset, or set '
                'class_image_counts in loss_cls and leave FederatedClassCountsHook out'
            )
        for loss in losses:
            loss.set_class_image_counts(counts)
