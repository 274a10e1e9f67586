"""Configs beside the published runs: test views, the demo, videos of one's own."""

import copy

import numpy as np
import pytest
import torch
from mmaction.registry import DATASETS, MODELS
from mmaction.structures import ActionDataSample
from mmengine.optim import build_optim_wrapper

from ..helpers import load_config
from ..test_configs import types_of
from .small import shrink_video, write_video

CLASSES = ('722', '400', '600', '700')


def load(name):
    return load_config(name, 'mmaction')


def views_of(cfg, tmp_path):
    """Twice the views of a video of 48 frames that the test data give."""
    shrink_video(cfg, num_frames=cfg.model.backbone.num_frames)
    write_video(tmp_path / '0.mp4', 48)
    (tmp_path / 'list.txt').write_text('0.mp4 0\n')
    cfg.test_dataloader.dataset.update(
        ann_file=str(tmp_path / 'list.txt'), data_prefix=dict(video=str(tmp_path))
    )
    data = DATASETS.build(cfg.test_dataloader.dataset)
    views = []
    for seed in range(2):
        np.random.seed(seed)
        views.append(data[0]['inputs'])
    return views


@pytest.mark.parametrize('classes', CLASSES)
def test_published_views_are_drawn_and_even_ones_are_not(classes, tmp_path):
    frames = 8 if classes == '722' else 16
    first, second = views_of(load(f'kinetics/eva_g_k{classes}'), tmp_path)
    assert first.shape == (12, 3, frames, 56, 56)
    assert not torch.equal(first, second)

    even = load(f'kinetics/eva_g_k{classes}_even_test')
    first, second = views_of(even, tmp_path)
    assert first.shape == (12, 3, frames, 56, 56)
    assert torch.equal(first, second)
    # Four clips that differ, each with its three crops of one brightness.
    levels = first.float().mean(dim=(1, 2, 3, 4)).reshape(-1, 12).flatten()
    assert len({round(float(level)) for level in levels}) >= 3


@pytest.mark.parametrize('classes', CLASSES)
def test_one_view_is_that_of_validation(classes, tmp_path):
    cfg = load(f'kinetics/eva_g_k{classes}_single_test')
    assert cfg.test_dataloader.dataset == cfg.val_dataloader.dataset
    first, second = views_of(cfg, tmp_path)
    assert first.shape == (1, 3, 8 if classes == '722' else 16, 56, 56)
    assert torch.equal(first, second)


@pytest.mark.parametrize('classes', CLASSES)
@pytest.mark.parametrize('form', ['even', 'single'])
def test_forms_of_a_test_change_nothing_else(classes, form):
    leaf = load(f'kinetics/eva_g_k{classes}')
    cfg = load(f'kinetics/eva_g_k{classes}_{form}_test')
    for key in ('model', 'train_dataloader', 'val_dataloader', 'test_evaluator', 'load_from'):
        assert cfg[key] == leaf[key]


def test_few_views_at_a_time_give_the_same():
    """As docs/kinetics.md says for small GPUs."""
    cfg = shrink_video(load('kinetics/eva_g_k400'))
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).eval()
    torch.nn.init.normal_(model.cls_head.fc_cls.weight)
    views = torch.randint(0, 256, (12, 3, 4, 56, 56), dtype=torch.uint8)
    data = dict(inputs=[views], data_samples=[ActionDataSample().set_gt_label(0)])
    with torch.no_grad():
        (expected,) = model.test_step(copy.deepcopy(data))
        model.test_cfg = dict(max_testing_views=5)
        (found,) = model.test_step(data)
    torch.testing.assert_close(found.pred_score, expected.pred_score)


@pytest.mark.parametrize('name', ['demo/kinetics', 'demo/kinetics_per_frame'])
def test_demo_has_the_types_of_its_leaf(name):
    assert types_of(load(name)) == types_of(load('kinetics/eva_g_k400'))


@pytest.mark.parametrize('name', ['demo/kinetics', 'demo/kinetics_per_frame'])
def test_demo_takes_a_step(name):
    cfg = load(name)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    wrapper = build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper))
    frames = cfg.model.backbone.num_frames
    assert cfg.train_pipeline[1].num_frames == frames
    clips = torch.randint(0, 256, (2, 1, 3, frames, 48, 48), dtype=torch.uint8)
    samples = [ActionDataSample().set_gt_label(label) for label in (0, 5)]
    losses = model.train().train_step(dict(inputs=list(clips), data_samples=samples), wrapper)
    assert torch.isfinite(losses['loss'])


def test_the_frames_of_the_baseline_never_meet():
    """A video's answer is the mean of those of its frames, each asked for alone."""
    cfg = load('demo/kinetics_per_frame')
    assert cfg.val_pipeline[1].num_clips == 8
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).eval()
    frames = torch.randint(0, 256, (8, 3, 1, 48, 48), dtype=torch.uint8)

    def ask(views):
        sample = ActionDataSample().set_gt_label(0)
        with torch.no_grad():
            return model.test_step(dict(inputs=[views], data_samples=[sample]))[0].pred_score

    alone = torch.stack([ask(frames[i : i + 1]) for i in range(8)])
    torch.testing.assert_close(ask(frames), alone.mean(dim=0))
    torch.testing.assert_close(ask(frames.flip(0)), ask(frames))
