"""The demo's chain on a handful of images: teacher, student, classifier."""

import math

import pytest
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint

from eva_mm.demo import generate_captions
from eva_mm.engine.curves import read_curves
from eva_mm.engine.launch import prepare_train_config, run_training
from tests.helpers import load_config

STEPS = 30


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    return generate_captions(tmp_path_factory.mktemp('demo') / 'captions', 64, 16, 64)


def train(name, work, **options):
    """Run a demo config for a few steps; return its last checkpoint and curves."""
    short = {
        'train_cfg.max_iters': STEPS,
        'train_cfg.val_interval': STEPS,
        'param_scheduler': [],
        'default_hooks.checkpoint.interval': STEPS,
        'train_dataloader.batch_size': 16,
        'train_dataloader.num_workers': 0,
        'train_dataloader.persistent_workers': False,
        'val_dataloader.num_workers': 0,
        'val_dataloader.persistent_workers': False,
        'log_level': 'WARNING',
        'default_hooks.logger.interval': 10,
        'randomness.seed': 0,
        # mmengine keeps one visualizer of each name in a process, with the folder it began with.
        'visualizer.name': work.name,
    }
    cfg = prepare_train_config(name, cfg_options={**short, **options}, work_dir=str(work))
    run_training(cfg)
    return work / f'iter_{STEPS}.pth', read_curves(str(work))


@pytest.mark.slow
def test_teacher_student_and_classifier_follow_one_another(images, tmp_path):
    folder = f'{images}/'
    data = {f'{part}_dataloader.dataset.data_root': folder for part in ('train', 'val')}
    teacher, curves = train('demo/clip_teacher', tmp_path / 'teacher', **data)
    # By chance, the logarithm of the batch size is to be had.
    assert curves['loss'][STEPS] < math.log(16) - 0.1
    assert 0 <= curves['retrieval/image_to_text'][STEPS] <= 100

    data = {
        'train_dataloader.dataset.data_root': folder + 'train/',
        'val_dataloader.dataset.data_root': folder + 'val/',
        'model.teacher.weights': str(teacher),
    }
    student, curves = train('demo/pretrain', tmp_path / 'student', **data)
    constant = curves['pretrain/mean_feature_loss'][STEPS]
    assert curves['pretrain/loss'][STEPS] < constant - 0.01
    cfg = load_config('demo/pretrain', 'mmengine')
    assert 'lm_head.weight' in load_checkpoint(MODELS.build(cfg.model), str(student))['state_dict']

    init_default_scope('mmengine')
    classifier = load_config('demo/imagenet', 'mmengine').model
    classifier.allowed_missing = ['fc_norm.*', 'head.*']
    model = MODELS.build(classifier)
    model.init_weights()
    weights = load_checkpoint(model, str(student))['state_dict']
    own = model.state_dict()
    assert own['blocks.3.mlp.fc2.weight'].equal(weights['blocks.3.mlp.fc2.weight'])
    assert own['pos_embed'].equal(weights['pos_embed'])
