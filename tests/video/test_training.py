"""A leaf, small, through the Runner: training, validation, a checkpoint that is tested."""

import pytest
import torch
from mmengine.runner import Runner

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
