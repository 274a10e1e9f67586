"""Class counts reach the federated loss before the first iteration."""

from types import SimpleNamespace

import pytest
import torch

from eva_mm.detection import FederatedClassCountsHook, FederatedLoss


def runner(metainfo: dict, model: torch.nn.Module) -> SimpleNamespace:
    loader = SimpleNamespace(dataset=SimpleNamespace(metainfo=metainfo))
    return SimpleNamespace(model=model, train_dataloader=loader)


def test_every_stage_gets_the_training_sets_counts(build):
    model = build('lvis')
    FederatedClassCountsHook().before_train(runner(dict(image_counts=[4, 9, 16, 25, 36]), model))
    losses = [m for m in model.modules() if isinstance(m, FederatedLoss)]
    assert len(losses) == 3
    for loss in losses:
        assert loss.fed_loss_cls_weights.tolist() == [2, 3, 4, 5, 6]


def test_counts_that_are_absent_or_do_not_fit_are_an_error(build):
    model = build('lvis')
    with pytest.raises(ValueError, match="metainfo\\['image_counts'\\] is absent"):
        FederatedClassCountsHook().before_train(runner({}, model))
    with pytest.raises(ValueError, match='image counts of 2 classes given for num_classes=5'):
        FederatedClassCountsHook().before_train(runner(dict(image_counts=[1, 2]), model))


def test_models_without_the_loss_need_no_counts(build):
    FederatedClassCountsHook().before_train(runner({}, build('coco')))
