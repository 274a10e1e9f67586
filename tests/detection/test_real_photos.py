"""Real photos with real polygons through the training tool."""

import json
import math
import subprocess
import sys

import pytest

from ..helpers import ROOT

PHOTOS = ROOT.parent / 'shared' / 'data' / 'coco4'


@pytest.mark.slow
@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f'no photos in {PHOTOS}')
def test_losses_fall_on_real_photos(tmp_path):
    """A few iterations of the config that learns four photos by heart.

    The total is no measure so early: as proposals come to hit, more of them have boxes to regress.
    """
    options = [
        f'train_dataloader.dataset.data_root={PHOTOS}/',
        f'val_dataloader.dataset.data_root={PHOTOS}/',
        f'val_evaluator.ann_file={PHOTOS}/instances.json',
        'train_cfg.max_iters=48',
        'train_cfg.val_interval=48',
        'default_hooks.logger.interval=1',
        'log_processor.window_size=1',
        'randomness.seed=0',
    ]
    command = [sys.executable, 'tools/train.py', 'configs/demo/coco_overfit.py']
    command += ['--work-dir', str(tmp_path), '--cfg-options', *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    text = done.stdout + done.stderr
    assert done.returncode == 0, text[-3000:]
    assert 'coco/segm_mAP' in text
    (scalars,) = tmp_path.glob('*/vis_data/scalars.json')
    rows = [json.loads(line) for line in scalars.read_text().splitlines()]
    rows = [row for row in rows if 'loss' in row]
    assert len(rows) == 48
    assert all(math.isfinite(row['loss']) for row in rows)
    assert {'s0.loss_cls', 's2.loss_bbox', 'loss_rpn_bbox'} <= rows[0].keys()
    # Twice what five seeds differed by above the highest ratio of means.
    for name, most in (('loss_rpn_cls', 0.7), ('s2.loss_cls', 0.75), ('loss_mask', 0.97)):
        first, last = (sum(row[name] for row in part) for part in (rows[:12], rows[-12:]))
        assert last < most * first, name
