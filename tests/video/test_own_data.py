"""A config fitted to video folders of one's own."""

import math
import pickle

import pytest
from mmaction.registry import DATASETS
from mmengine.runner import Runner

from eva_mm.engine.layer_decay import param_group_table
from eva_mm.errors import InputError, UsageError
from eva_mm.video import own_data
from eva_mm.video.own_data import fit_to_data

from ..helpers import load_config
from ..test_configs import types_of
from .small import shrink_video, write_video

LEAF = 'kinetics/eva_g_finetune'


def make_folders(root, counts):
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f'{number}.mp4').touch()


def fitted(root, clips_per_update=8, kept=(), purpose='train', **changes):
    cfg = load_config(LEAF, 'mmaction')
    cfg.data_root = str(root)
    cfg.train_dataloader.batch_size = 4
    cfg.merge_from_dict(changes)
    fit_to_data(cfg, clips_per_update, kept, purpose)
    return cfg


@pytest.fixture
def root(tmp_path):
    make_folders(tmp_path / 'train', {'zumba': 20, 'archery': 30})
    make_folders(tmp_path / 'val', {'zumba': 3})
    return tmp_path


def test_schedule_classes_and_rate(root):
    cfg, leaf = fitted(root), load_config(LEAF, 'mmaction')
    # 20 epochs of 50 videos by 8 are fewer updates than a new head needs.
    assert cfg.train_cfg.max_iters == 200
    assert cfg.train_cfg.val_interval == cfg.default_hooks.checkpoint.interval == 20
    rise, fall = cfg.param_scheduler
    assert rise.end == fall.begin == 2 * 6
    assert (fall.end, fall.T_max) == (200, 188)
    rate = leaf.optim_wrapper.optimizer.lr * (8 / 256) ** 0.5
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(rate)
    assert cfg.auto_scale_lr.base_batch_size == 8
    assert cfg.model.cls_head.num_classes == 2
    for loader, folder, number in (('train', 'train', 50), ('val', 'val', 3), ('test', 'val', 3)):
        data = DATASETS.build(cfg[f'{loader}_dataloader'].dataset)
        assert (len(data), data.metainfo['classes']) == (number, ('archery', 'zumba'))
        info = data.get_data_info(len(data) - 1)
        assert info['filename'].startswith(str(root / folder / 'zumba'))
        assert info['label'] == 1
    assert types_of(leaf.model) == types_of(load_config('kinetics/eva_g_k400', 'mmaction').model)


def test_long_runs_count_epochs_and_what_a_user_sets_stays(root):
    cfg = fitted(root, clips_per_update=2)
    assert cfg.train_cfg.max_iters == 20 * 25
    assert cfg.param_scheduler[0].end == 2 * 25
    changes = {'train_cfg.max_iters': 7, 'optim_wrapper.optimizer.lr': 0.5}
    cfg = fitted(root, kept=changes, **changes)
    assert (cfg.train_cfg.max_iters, cfg.optim_wrapper.optimizer.lr) == (7, 0.5)
    assert cfg.param_scheduler[1].end == 7
    with pytest.raises(UsageError, match='2 iterations is too short'):
        fitted(root, kept={'train_cfg.max_iters'}, **{'train_cfg.max_iters': 2})


def test_a_tenth_is_held_out(tmp_path):
    make_folders(tmp_path, {'a': 30, 'b': 20, 'c': 1})
    # Two parts of one video stay together.
    for second in (1, 20):
        (tmp_path / 'c' / f'cccccccccc2_{second:06d}_{second + 10:06d}.mp4').touch()
    cfg = fitted(tmp_path)
    paths = {}
    for part in ('train', 'val', 'test'):
        data = DATASETS.build(cfg[f'{part}_dataloader'].dataset)
        infos = [data.get_data_info(i) for i in range(len(data))]
        paths[part] = {info['filename'] for info in infos}
        if part != 'train':
            assert {info['label'] for info in infos} == {0, 1, 2}
    assert paths['val'] == paths['test']
    assert not paths['train'] & paths['val']
    assert len(paths['train'] | paths['val']) == 53
    together = [
        {'cccccccccc2' in path for path in part if '/c/' in path} for part in paths.values()
    ]
    assert all(len(kinds) == 1 for kinds in together)
    assert cfg.fitted_length.split is not None
    other = fitted(tmp_path, **{'own_data.split_seed': 1})
    assert other.fitted_length.split != cfg.fitted_length.split


def test_a_class_with_one_video_keeps_it(tmp_path):
    make_folders(tmp_path, {'a': 9, 'b': 0})
    # The same video in both classes: whatever is drawn in the one, the other has no second one.
    for name in 'ab':
        (tmp_path / name / 'cccccccccc2_000001_000011.mp4').touch()
    for seed in range(20):
        options = {'own_data.split_seed': seed, 'own_data.val_fraction': 0.8}
        cfg = fitted(tmp_path, **options, **{'train_dataloader.batch_size': 1})
        labels = [
            entry['label']
            for entry in DATASETS.build(cfg.train_dataloader.dataset).load_data_list()
        ]
        assert sorted(labels) == [0, 0, 1]


def test_the_first_process_alone_looks(root, monkeypatch):
    monkeypatch.setattr('eva_mm.video.own_data.on_first_process', lambda work: told)
    told = 'nothing'
    with pytest.raises(AttributeError):
        fitted(root)  # it takes what it is told
    monkeypatch.undo()
    told = own_data._read(*own_data._find_parts(root, load_config(LEAF, 'mmaction').own_data))
    assert pickle.loads(pickle.dumps(told)) == told
    monkeypatch.setattr('eva_mm.video.own_data.on_first_process', lambda work: told)
    monkeypatch.setattr('eva_mm.video.own_data.find_videos', None)
    assert fitted(root).model.cls_head.num_classes == 2


def test_a_new_head_learns(tmp_path):
    for label, name in enumerate(('dark', 'light')):
        for number in range(4):
            path = tmp_path / 'data' / name / f'{number}.avi'
            write_video(path, 4, (64, 64), start=12 * label)
    cfg = fitted(tmp_path / 'data', 2, **{'own_data.epochs': 1, 'own_data.num_validations': 2})
    shrink_video(cfg, num_classes=2, embed_dim=96, mlp_dim=96)
    cfg.train_dataloader.batch_size = 2
    cfg.merge_from_dict(dict(env_cfg=dict(mp_cfg=dict(mp_start_method='fork'))))
    cfg.vis_backends = cfg.visualizer.vis_backends = [dict(type='LocalVisBackend')]
    cfg.load_from, cfg.work_dir = None, str(tmp_path / 'run')
    cfg.experiment_name = f'own_{tmp_path.name}'
    runner = Runner.from_cfg(cfg)
    runner.train()
    rates = {row.name: row.lr for row in param_group_table(runner.optim_wrapper)}
    head, norm = 'cls_head.fc_cls.weight', 'cls_head.fc_norm.weight'
    assert rates[head] == pytest.approx(300 * rates[norm])
    losses, _ = runner.message_hub.get_scalar('train/loss').data
    assert losses[0] == pytest.approx(math.log(2), abs=1e-2)
    # At the rate of the rest it is 0.688 even then.
    assert sum(losses[-20:]) / 20 < 0.4
    assert runner.message_hub.get_scalar('val/acc/top1').current() == 1
    assert list((tmp_path / 'run').glob('best_acc_top1_iter_*.pth'))


def test_what_is_fitted_stays(root):
    cfg = fitted(root)
    before = cfg.pretty_text
    fit_to_data(cfg, 8, (), 'train')
    assert cfg.pretty_text == before
    make_folders(root / 'other' / 'train', {'x': 3, 'y': 3})
    cfg.data_root = str(root / 'other')
    with pytest.raises(UsageError, match='is fitted to .*for other data'):
        fit_to_data(cfg, 8, (), 'train')


@pytest.mark.parametrize(
    ('counts', 'changes', 'message'),
    [
        ({'train/a': 3}, {}, "holds one class, 'a'"),
        ({'train/a': 3, 'train/b': 0}, {}, "no video of 'b'"),
        ({'train/a': 3, 'train/b': 3, 'val/c': 1}, {}, "no training folder of the class 'c'"),
        ({'a': 3, 'b': 2, 'train/x': 3}, {}, r'is it the training folder .* or a class'),
        ({'val/a': 3}, {}, 'holds val, but no train'),
        ({'a': 1, 'b': 1}, {}, 'no class has a second video'),
        ({'a': 2, 'b': 2}, {'own_data.train': 'c'}, 'own_data.train=c: no such folder'),
        ({'a': 2, 'b': 2}, {'own_data.epochs': 0}, 'own_data.epochs should be above 0'),
        ({'a': 2, 'b': 2}, {'own_data.epoch': 5}, 'own_data.epoch is no option; own_data.epochs'),
        ({'train/a': 2, 'train/b': 2}, {'own_data.val': 'train/a'}, 'share videos'),
        ({'a': 2, 'b': 1}, {}, r'2 training videos are fewer than .*batch_size=4'),
    ],
)
def test_what_cannot_be_fitted(tmp_path, counts, changes, message):
    make_folders(tmp_path, counts)
    with pytest.raises(InputError, match=message):
        fitted(tmp_path, **changes)


def test_no_folder(tmp_path):
    with pytest.raises(InputError, match='it does not exist'):
        fitted(tmp_path / 'none')
    cfg = load_config(LEAF, 'mmaction')
    with pytest.raises(UsageError, match='needs video folders: --cfg-options data_root=DIR'):
        fit_to_data(cfg, 8)
