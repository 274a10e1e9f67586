"""A leaf, small, through the Runner: training, validation, a checkpoint that is tested."""

import logging

import pytest
import torch
from mmengine.runner import Runner

from eva_mm.errors import InputError

from ..helpers import load_config
from .small import shrink_video, write_video


@pytest.fixture
def config(tmp_path):
    """Kinetics-400's leaf on four generated videos of two lengths."""
    for index in range(4):
        write_video(tmp_path / f'{index}.mp4', 3 + 9 * (index % 2))
    (tmp_path / 'list.txt').write_text(''.join(f'{i}.mp4 {i % 2}\n' for i in range(4)))
    cfg = shrink_video(load_config('kinetics/eva_g_k400', 'mmaction'))
    for part in ('train', 'val', 'test'):
        cfg[f'{part}_dataloader'].dataset.update(
            ann_file=str(tmp_path / 'list.txt'), data_prefix=dict(video=str(tmp_path))
        )
    cfg.train_dataloader.batch_size = 2
    cfg.train_cfg.update(max_iters=3, val_interval=3)
    cfg.optim_wrapper.optimizer.lr = 1e-3
    cfg.default_hooks.checkpoint.interval = 3
    cfg.default_hooks.logger.interval = 1
    cfg.merge_from_dict(dict(env_cfg=dict(mp_cfg=dict(mp_start_method='fork'))))
    cfg.vis_backends = cfg.visualizer.vis_backends = [dict(type='LocalVisBackend')]
    cfg.load_from = None
    cfg.work_dir = str(tmp_path / 'run')
    cfg.experiment_name = f'video_{tmp_path.name}'
    return cfg


def test_run_trains_validates_and_is_tested(config, tmp_path):
    runner = Runner.from_cfg(config)
    runner.train()
    values = runner.message_hub.log_scalars
    assert 0 <= values['val/acc/top1'].current() <= 1
    assert values['train/loss'].current() > 0
    # The rate never moves.
    assert values['train/base_lr'].current() == pytest.approx(1e-3)
    file = tmp_path / 'run' / 'iter_3.pth'
    saved = torch.load(file, weights_only=False)['state_dict']
    assert 'cls_head.fc_cls.weight' in saved

    config.load_from = str(file)
    config.experiment_name += '_test'
    tester = Runner.from_cfg(config)
    metrics = tester.test()
    assert 0 <= metrics['acc/top1'] <= 1
    own = tester.model.state_dict()
    assert torch.equal(own['cls_head.fc_cls.weight'], saved['cls_head.fc_cls.weight'])


def test_broken_video_is_told_replaced_and_counted(config, tmp_path, caplog):
    whole = (tmp_path / '2.mp4').read_bytes()
    (tmp_path / '2.mp4').write_bytes(whole[: len(whole) // 2])
    config.train_dataloader.dataset.ann_file = str(tmp_path / 'train.txt')
    (tmp_path / 'train.txt').write_text('0.mp4 0\n2.mp4 0\n')
    config.val_dataloader = config.val_cfg = config.val_evaluator = None
    with caplog.at_level(logging.INFO):
        Runner.from_cfg(config).train()
    (log,) = (tmp_path / 'run').glob('*/*.log')
    text = log.read_text()
    assert f'video cannot be decoded: {tmp_path}/2.mp4' in text
    assert 'another video replaces it' in text
    # Three iterations of two: each epoch has it once.
    assert 'unreadable images replaced by others: 3 (50.00% of 6 samples)' in text


@pytest.mark.parametrize(
    ('classes', 'num_classes', 'message'),
    [
        (None, 1, r'num_classes is 1, but train_dataloader.dataset .* has labels up to 1'),
        (['a', 'b', 'c'], 5, r"num_classes is 5, but train_.* has 3 classes, from 'a' to 'c'"),
        (['a', 'b'], 2, r"val_.* and train_.* other classes.*: class 0 is 'b' in the former, 'a'"),
    ],
)
def test_classes_that_do_not_fit_stop_the_run(config, classes, num_classes, message):
    config.train_dataloader.dataset.classes = classes
    config.val_dataloader.dataset.classes = classes and classes[::-1]
    config.model.cls_head.num_classes = num_classes
    with pytest.raises(InputError, match=message):
        Runner.from_cfg(config).train()


def test_a_checkpoint_of_other_classes_is_not_tested(config, tmp_path):
    for part in ('train', 'val', 'test'):
        config[f'{part}_dataloader'].dataset.classes = ['a', 'b', 'c', 'd', 'e']
    config.train_cfg.update(max_iters=1, val_interval=1)
    config.default_hooks.checkpoint.interval = 1
    Runner.from_cfg(config).train()
    config.load_from = str(tmp_path / 'run' / 'iter_1.pth')
    config.experiment_name += '_test'
    config.test_dataloader.dataset.classes = ['a', 'b', 'c', 'e', 'd']
    with pytest.raises(InputError, match=r"the checkpoint .*: class 3 is 'e' in the former, 'd'"):
        Runner.from_cfg(config).test()
