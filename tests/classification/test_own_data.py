"""A config fitted to folders of one's own."""

import copy

import pytest
import torch
from mmengine.registry import PARAM_SCHEDULERS

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
    fit_to_data(cfg, 8)
    assert cfg.to_dict() == before.to_dict()
    cfg.data_root = str(tmp_path / 'train')
    with pytest.raises(UsageError, match='is fitted to'):
        fit_to_data(cfg, 8)
    with pytest.raises(UsageError, match='own_data.epochs: .* this would do nothing'):
        fit_to_data(before, 8, kept={'own_data.epochs'})


def test_other_images_per_update_of_a_fitted_config_are_told(root, told):
    cfg = fitted(root)
    rate = cfg.optim_wrapper.optimizer.lr
    fit_to_data(cfg, 64)
    assert 'fitted to 8 images per update, now it is 64' in told[-1]
    assert cfg.optim_wrapper.optimizer.lr == rate
    assert cfg.fitted_length.images_per_update == 64  # for who resumes it
    before = len(told)
    fit_to_data(cfg, 8, purpose='test')
    assert len(told) == before


@pytest.fixture
def told(monkeypatch):
    texts = []
    monkeypatch.setattr(
        'eva_mm.classification.own_data.print_log', lambda text, *_, **__: texts.append(text)
    )
    return texts


def test_home_folder(root, monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(root.parent))
    cfg = fitted(f'~/{root.name}')
    assert cfg.own_data.fitted_to == str(root)
    monkeypatch.chdir(root / 'train')
    fit_to_data(cfg, 8)


@pytest.mark.parametrize(
    ('option', 'value', 'text'),
    [
        ('epochs', 0, 'above 0, but got 0'),
        ('epochs', -1, 'above 0, but got -1'),
        ('warm_up_epochs', -3, '0 or more, but got -3'),
        ('ema_memory', 0, 'above 0, but got 0'),
        ('num_validations', 0, '1 or more, but got 0'),
        ('min_iterations', 'x', "1 or more, but got 'x'"),
        ('val_fraction', 1.5, 'a share between 0 and 1, but got 1.5'),
    ],
)
def test_options_out_of_range(root, option, value, text):
    with pytest.raises(UsageError, match=f'own_data.{option} should be {text}'):
        fitted(root, **{f'own_data.{option}': value})


def test_unknown_option(root):
    with pytest.raises(UsageError, match=r'own_data.epoks is no option; own_data.epochs\?'):
        fitted(root, **{'own_data.epoks': 3})


@pytest.mark.parametrize('val', ['train', './train', 'link', 'train/cat', '.'])
def test_one_folder_for_both_parts(root, val):
    (root / 'link').symlink_to('train')
    with pytest.raises(UsageError, match='share images: .*own_data.val_fraction'):
        fitted(root, **{'own_data.val': val})


def test_a_test_folder_without_classes_is_left_aside(tmp_path, told):
    make_folders(tmp_path / 'train', {'cat': 20, 'ape': 30})
    make_folders(tmp_path, {'test': 3})
    cfg = fitted(tmp_path)
    assert cfg.val_dataloader.dataset.holdout.part == 'val'
    assert told[0] == f'{tmp_path}/test has no class folders and is left aside'
    for file in (tmp_path / 'test').iterdir():
        file.unlink()
    make_folders(tmp_path / 'test', {'cat': 2})
    assert fitted(tmp_path).val_dataloader.dataset.data_root == str(tmp_path / 'test')


def test_a_class_called_train(tmp_path):
    make_folders(tmp_path, {'car': 5, 'bus': 5, 'train': 5})
    with pytest.raises(InputError, match=r'holds train beside .* as bus.*own_data\.train=\.'):
        fitted(tmp_path)
    cfg = fitted(tmp_path, **{'own_data.train': '.'})
    assert list(cfg.train_dataloader.dataset.classes) == ['bus', 'car', 'train']
    make_folders(tmp_path / 'train', {'freight': 4, 'steam': 4})
    with pytest.raises(InputError, match='holds train beside'):
        fitted(tmp_path)


def test_fewer_images_than_a_batch(tmp_path):
    make_folders(tmp_path / 'train', {'cat': 3, 'ape': 3})
    make_folders(tmp_path / 'val', {'cat': 1})
    with pytest.raises(InputError, match='6 training images are fewer than .*batch_size=16'):
        fitted(tmp_path, **{'train_dataloader.batch_size': 16})


@pytest.mark.parametrize('iterations', [1, 2])
def test_too_short_a_run(root, iterations):
    changes = {'train_cfg.max_iters': iterations}
    with pytest.raises(UsageError, match=f'run of {iterations} iterations .* 3 or more'):
        fitted(root, kept=set(changes), **changes)


def test_the_shortest_run_has_a_schedule(root):
    changes = {'train_cfg.max_iters': 3}
    cfg = fitted(root, kept=set(changes), **changes)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    for scheduler in cfg.param_scheduler:
        PARAM_SCHEDULERS.build(dict(scheduler), default_args=dict(optimizer=optimizer))


# ------------------------------------------------------------------------------------ checkpoints


def save(path, cfg, **meta):
    noted = dict(
        fitted_length=cfg.fitted_length.to_dict(),
        dataset_meta=dict(classes=tuple(cfg.train_dataloader.dataset.classes)),
    )
    torch.save(dict(state_dict={}, meta={**noted, **meta}), path)
    return str(path)


def test_a_checkpoint_of_other_classes_is_not_tested(root, tmp_path):
    path = save(tmp_path / 'c.pth', fitted(root), dataset_meta=dict(classes=('ape', 'cow')))
    with pytest.raises(UsageError, match=r'c\.pth was trained on 2 classes \(ape, cow'):
        fitted(root, purpose='test', load_from=path)


def test_a_checkpoint_is_tested_on_its_own_split_alone(tmp_path, told):
    folder = make_folders(tmp_path / 'data', {'cat': 20, 'ape': 30})
    path = save(tmp_path / 'c.pth', fitted(folder))
    fitted(folder, purpose='test', load_from=path)
    with pytest.raises(UsageError, match=r'c\.pth was trained on another split'):
        fitted(folder, purpose='test', load_from=path, **{'own_data.split_seed': 5})
    assert not any('other validation images' in text for text in told)


def test_other_validation_images_are_told(root, tmp_path, told):
    path = save(tmp_path / 'c.pth', fitted(root))
    fitted(root, purpose='test', load_from=path)
    assert not any('other validation images' in text for text in told)
    make_folders(root / 'val', {'ape': 1})
    fitted(root, purpose='test', load_from=path)
    assert any('other validation images' in text for text in told)


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
