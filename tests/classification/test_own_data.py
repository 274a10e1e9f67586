"""A config fitted to folders of one's own."""

import copy

import pytest

from eva_mm.classification.own_data import fit_to_data
from eva_mm.errors import InputError, UsageError

from ..helpers import load_config
from .small import make_folders

LEAVES = ['imagenet/eva_g_finetune', 'imagenet/eva_l_finetune']


def fitted(root, images_per_update=8, leaf=LEAVES[0], kept=(), purpose='train', **changes):
    cfg = load_config(leaf, 'mmengine')
    cfg.data_root = str(root)
    cfg.train_dataloader.batch_size = 4
    cfg.merge_from_dict(changes)
    fit_to_data(cfg, images_per_update, kept, purpose)
    return cfg


@pytest.fixture
def root(tmp_path):
    make_folders(tmp_path / 'train', {'cat': 20, 'ape': 30})
    make_folders(tmp_path / 'val', {'cat': 3})
    return tmp_path


@pytest.mark.parametrize('leaf', LEAVES)
def test_schedule_classes_and_rate(root, leaf):
    cfg = fitted(root, leaf=leaf)
    published = load_config(leaf, 'mmengine')
    # 20 epochs of 50 images by 8 are fewer updates than a new head needs.
    assert cfg.train_cfg.max_iters == 200
    assert cfg.train_cfg.val_interval == cfg.default_hooks.checkpoint.interval == 20
    rise, fall = cfg.param_scheduler
    assert rise.end == fall.begin == 2 * 6
    assert (fall.end, fall.T_max) == (200, 188)
    rate = published.optim_wrapper.optimizer.lr * (8 / 512) ** 0.5
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(rate)
    assert cfg.auto_scale_lr.base_batch_size == 8
    assert cfg.model.num_classes == 2
    assert cfg.custom_hooks[0].decay == pytest.approx(1 - 1 / 20)
    for loader, folder in (('train', 'train'), ('val', 'val'), ('test', 'val')):
        dataset = cfg[f'{loader}_dataloader'].dataset
        assert dataset.data_root == str(root / folder)
        assert list(dataset.classes) == ['ape', 'cat']
    assert cfg.train_dataloader.dataset.get('require_all', True) is not False


def test_long_runs_count_epochs(root):
    cfg = fitted(root, images_per_update=2)
    assert cfg.train_cfg.max_iters == 20 * 25
    assert cfg.param_scheduler[0].end == 2 * 25


def test_folders_without_parts_are_split(tmp_path):
    make_folders(tmp_path, {'cat': 20, 'ape': 30})
    cfg = fitted(tmp_path)
    from mmengine.registry import DATASETS

    sizes = {}
    for part in ('train', 'val'):
        dataset = copy.deepcopy(cfg[f'{part}_dataloader'].dataset)
        dataset.pipeline = []
        sizes[part] = len(DATASETS.build(dataset))
    assert sizes == dict(train=45, val=5)


def test_command_line_stays(root):
    changes = {'train_cfg.max_iters': 70, 'optim_wrapper.optimizer.lr': 0.5}
    cfg = fitted(root, kept=set(changes), **changes)
    assert cfg.train_cfg.max_iters == 70
    assert cfg.optim_wrapper.optimizer.lr == 0.5
    assert cfg.param_scheduler[1].end == 70


def test_test_leaves_the_schedule_alone(root):
    cfg = fitted(root, purpose='test')
    assert cfg.train_cfg.max_iters == 25020
    assert cfg.model.num_classes == 2


def test_fitted_config_is_left_alone(root, tmp_path):
    cfg = fitted(root)
    before = copy.deepcopy(cfg)
    fit_to_data(cfg, 16)
    assert cfg.to_dict() == before.to_dict()
    cfg.data_root = str(tmp_path / 'train')
    with pytest.raises(UsageError, match='is fitted to'):
        fit_to_data(cfg, 8)
    with pytest.raises(UsageError, match='own_data.epochs would do nothing'):
        fit_to_data(before, 8, kept={'own_data.epochs'})


def test_bad_folders(tmp_path):
    with pytest.raises(UsageError, match='data_root=DIR'):
        fit_to_data(load_config(LEAVES[0], 'mmengine'), 8)
    with pytest.raises(InputError, match='it does not exist'):
        fitted(tmp_path / 'nowhere')
    make_folders(tmp_path / 'val', {'cat': 3, 'ape': 3})
    with pytest.raises(InputError, match='holds val, but no train'):
        fitted(tmp_path)
    make_folders(tmp_path / 'train', {'cat': 3})
    with pytest.raises(InputError, match="one class, 'cat'"):
        fitted(tmp_path)
    make_folders(tmp_path / 'train', {'cow': 3})
    with pytest.raises(InputError, match='not among them: 1 .ape.'):
        fitted(tmp_path)
    with pytest.raises(InputError, match='own_data.train=training: no such folder'):
        fitted(tmp_path, **{'own_data.train': 'training'})
