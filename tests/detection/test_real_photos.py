"""Real photos with real polygons through the training tool."""

import json
import re
import subprocess
import sys

import pytest

from ..helpers import ROOT

PHOTOS = ROOT.parent / 'shared' / 'data' / 'coco4'


@pytest.mark.slow
@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f'no photos in {PHOTOS}')
def test_losses_fall_on_real_photos(tmp_path):
    """A few iterations of the config that learns four photos by heart."""
    options = [
        f'train_dataloader.dataset.data_root={PHOTOS}/',
        f'val_dataloader.dataset.data_root={PHOTOS}/',
        f'val_evaluator.ann_file={PHOTOS}/instances.json',
        'train_cfg.max_iters=24',
        'train_cfg.val_interval=24',
        'default_hooks.logger.interval=4',
        'log_processor.window_size=1',
    ]
    command = [sys.executable, 'tools/train.py', 'configs/demo/coco_overfit.py']
    command += ['--work-dir', str(tmp_path), '--cfg-options', *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    text = done.stdout + done.stderr
    assert done.returncode == 0, text[-3000:]
    losses = [float(v) for v in re.findall(r'Iter\(train\).*?  loss: ([\d.]+)', text)]
    assert len(losses) >= 6
    assert losses[-1] < 0.75 * losses[0]
    assert 'coco/segm_mAP' in text
    (scalars,) = tmp_path.glob('*/vis_data/scalars.json')
    rows = [json.loads(line) for line in scalars.read_text().splitlines()]
    assert {'s0.loss_cls', 's2.loss_bbox', 'loss_mask', 'loss_rpn_cls'} <= rows[0].keys()
