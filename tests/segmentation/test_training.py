"""The ADE20K leaf, shrunk, through mmengine's Runner on pictures in ADE20K's layout."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.runner import Runner

from .shrunk import CROP, NUM_CLASSES, shrunk_leaf

CLASSES = ('wall', 'building', 'sky', 'floor', 'tree')  # ADE20K's first
SIZES = [(48, 64), (70, 50), (64, 64)]


@pytest.fixture(scope='module')
def ade20k(tmp_path_factory):
    """Three pictures each, with label maps of 0 (other), 1 ... in the layout of the challenge."""
    root = tmp_path_factory.mktemp('ade20k')
    rng = np.random.default_rng(0)
    for split in ('training', 'validation'):
        for kind in ('images', 'annotations'):
            (root / kind / split).mkdir(parents=True)
        for i, (h, w) in enumerate(SIZES):
            image = rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
            label = np.repeat(np.arange(h) * (NUM_CLASSES + 1) // h, w).reshape(h, w)
            cv2.imwrite(str(root / f'images/{split}/{i}.jpg'), image)
            cv2.imwrite(str(root / f'annotations/{split}/{i}.png'), label.astype(np.uint8))
    return root


@pytest.fixture
def cfg(ade20k, tmp_path):
    cfg = shrunk_leaf('ade20k/eva_mask2former')
    sizes = dict(scale=(4 * CROP, CROP))
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.update(data_root=str(ade20k), metainfo=dict(classes=CLASSES))
        resize = next(t for t in loader.dataset.pipeline if 'Resize' in t.type)
        resize.update(sizes)
    next(t for t in cfg.train_dataloader.dataset.pipeline if t.type == 'RandomCrop').update(
        crop_size=(CROP, CROP)
    )
    cfg.train_cfg.update(max_iters=2, val_interval=2)
    cfg.work_dir, cfg.load_from = str(tmp_path), None
    cfg.env_cfg.cudnn_benchmark = False
    cfg.default_hooks.checkpoint.interval = 2
    return cfg


def test_trains_and_validates(cfg, tmp_path):
    runner = Runner.from_cfg(cfg)
    runner.train()
    scores = {name: runner.message_hub.get_scalar(f'val/{name}') for name in ('aAcc', 'mIoU')}
    assert all(0 <= score.current() <= 100 for score in scores.values())
    assert (tmp_path / 'iter_2.pth').is_file()


def direct_miou(labels, predictions):
    """Mean over classes of intersection over union, counted pixel by pixel over all pictures."""
    ious = []
    for c in range(NUM_CLASSES):
        inter = sum(((p == c) & (y == c)).sum() for y, p in zip(labels, predictions))
        union = sum((((p == c) & (y != 255)) | (y == c)).sum() for y, p in zip(labels, predictions))
        ious.append(float(inter) / float(union) if union else float('nan'))
    return 100 * np.nanmean(ious)


def test_miou_is_that_of_all_pixels_at_the_original_size(cfg):
    runner = Runner.from_cfg(cfg)
    labels, predictions = [], []
    runner.model.init_weights()
    with torch.no_grad():
        for data in runner.build_dataloader(cfg.val_dataloader):
            (sample,) = runner.model.eval().val_step(data)
            labels.append(sample.gt_sem_seg.data[0].numpy())
            predictions.append(sample.pred_sem_seg.data[0].numpy())
    assert [label.shape for label in labels] == SIZES
    # 'Other' is ignored, the classes count from 0.
    assert set(np.unique(labels[0])) == {*range(NUM_CLASSES), 255}
    expected = direct_miou(labels, predictions)
    assert runner.val()['mIoU'] == pytest.approx(expected, abs=0.01)


def test_crops_repeat_by_position(cfg):
    """The same position gives the same sample, whatever came before."""
    from eva_mm.engine.exact_data import PositionedIndex

    dataset = Runner.build_dataloader(cfg.train_dataloader, seed=0).dataset
    first, *_, again = [dataset[PositionedIndex(1, position, 7)] for position in (5, 6, 7, 5)]
    other = dataset[PositionedIndex(1, 8, 7)]
    assert torch.equal(first['inputs'], again['inputs'])
    assert first['inputs'].shape != other['inputs'].shape or not torch.equal(
        first['inputs'], other['inputs']
    )
