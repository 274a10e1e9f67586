"""The ADE20K leaf, shrunk, on pictures in ADE20K's layout: by the Runner and by the tools."""

import os
import re
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.runner import Runner
from mmseg.registry import MODELS

from eva_mm.engine import launch
from eva_mm.errors import InputError

from ..helpers import ROOT, free_port
from ..test_tools import TEST, TRAIN, call, tool
from .shrunk import CROP, NUM_CLASSES, dotted, shrunk_leaf, small_sizes

INFER = str(ROOT / 'tools/infer.py')

CLASSES = ('wall', 'building', 'sky', 'floor', 'tree')  # ADE20K's first
METRICS = ('aAcc', 'mIoU')
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
    cfg.train_cfg.update(max_iters=40, val_interval=40)
    cfg.default_hooks.checkpoint.interval = 40
    cfg.optim_wrapper.optimizer.lr = 2e-3
    cfg.param_scheduler = []  # the warm-up is longer than this run
    cfg.randomness = dict(seed=0)
    runner = Runner.from_cfg(cfg)
    runner.model.init_weights()
    before = {name: p.detach().clone() for name, p in runner.model.named_parameters()}
    runner.train()
    losses, _ = runner.message_hub.get_scalar('train/loss').data
    assert losses[-10:].mean() < 0.9 * losses[:10].mean()
    still = [n for n, p in runner.model.named_parameters() if torch.equal(p, before[n])]
    assert not still
    # The maps are five bands: more than one class alone gets right.
    scores = {name: runner.message_hub.get_scalar(f'val/{name}').current() for name in METRICS}
    assert 30 < scores['aAcc'] <= 100
    assert 10 < scores['mIoU'] <= scores['aAcc']
    assert (tmp_path / 'iter_40.pth').is_file()


def steps_of(node):
    """Types of all transforms, in whatever lists."""
    if isinstance(node, (list, tuple)):
        return [name for step in node for name in steps_of(step)]
    return [node['type'], *steps_of(node.get('transforms', []))]


def test_predictions_alone_need_no_label_maps(cfg, ade20k, tmp_path):
    shutil.copytree(ade20k / 'images/validation', tmp_path / 'data/images/testing')
    cfg.tta_pipeline[1]['transforms'][0] = [dict(type='Resize', scale=(256, 64), keep_ratio=True)]
    cfg.tta_pipeline[1]['transforms'][3] = [dict(type='PadAtLeast', size=(CROP, CROP))]
    config, checkpoint = str(tmp_path / 'leaf.py'), str(tmp_path / 'leaf.pth')
    cfg.dump(config)
    model = MODELS.build(cfg.model)
    model.init_weights()
    meta = dict(dataset_meta=dict(classes=CLASSES))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), checkpoint)
    dataset = 'test_dataloader.dataset'
    options = {
        f'{dataset}.data_root': str(tmp_path / 'data'),
        f'{dataset}.data_prefix.img_path': 'images/testing',
        'test_evaluator.output_dir': str(tmp_path / 'maps'),
    }
    with pytest.raises(InputError, match='label map folder not found'):
        launch.run_test(launch.prepare_test_config(config, checkpoint, options, str(tmp_path)))
    options['test_evaluator.format_only'] = True
    for tta in (False, True):
        test = launch.prepare_test_config(config, checkpoint, options, str(tmp_path), tta=tta)
        kept = steps_of(cfg['tta_pipeline' if tta else 'test_pipeline'])
        kept.remove('LoadAnnotations')
        assert steps_of(test.test_dataloader.dataset.pipeline) == kept
        launch.run_test(test)
        for number, size in enumerate(SIZES):
            written = cv2.imread(str(tmp_path / f'maps/{number}.png'), -1)
            assert written.shape == size
            assert {*np.unique(written)} <= {1, 2, 3, 4, 5}
        shutil.rmtree(tmp_path / 'maps')


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


def run(cfg, work_dir, iterations, resume=None):
    """Train with a checkpoint every two iterations; the weights in the end."""
    cfg = cfg.copy()
    cfg.work_dir, cfg.train_cfg.max_iters = str(work_dir), iterations
    cfg.default_hooks.checkpoint.update(interval=2, max_keep_ckpts=-1)
    cfg.randomness = dict(seed=3)
    cfg.experiment_name = f'{work_dir.name}_{iterations}_{resume}'
    if resume:
        cfg.load_from, cfg.resume = str(resume), True
    runner = Runner.from_cfg(cfg)
    runner.train()
    return {key: value.clone() for key, value in runner.model.state_dict().items()}


def test_a_resumed_run_repeats_exactly(cfg, tmp_path):
    cfg.train_cfg.val_interval = 100
    cfg.optim_wrapper.optimizer.lr = 0.01
    cfg.model.backbone.drop_path_rate = 0.3
    whole = run(cfg, tmp_path / 'whole', 4)
    run(cfg, tmp_path / 'parts', 2)
    resumed = run(cfg, tmp_path / 'parts', 4, tmp_path / 'parts/iter_2.pth')
    first = torch.load(tmp_path / 'parts/iter_2.pth', weights_only=False)['state_dict']
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert not torch.equal(first['backbone.pos_embed'], whole['backbone.pos_embed'])


def test_classes_that_do_not_belong_together(cfg):
    def stopped(message, how='train', **changes):
        changed = cfg.copy()
        changed.experiment_name = f'stopped_{len(message)}_{how}'
        changed.merge_from_dict(changes)
        runner = Runner.from_cfg(changed)
        with pytest.raises(InputError, match=message):
            getattr(runner, how)()

    few = ('wall', 'building', 'sky', 'floor')
    other = (*few[::-1], 'tree')
    part = '{}_dataloader.dataset.metainfo.classes'.format
    text = "num_classes is 5, but train_dataloader.dataset has 4 classes, from 'wall' to 'floor'"
    stopped(text, **{part('train'): few})
    text = "val_dataloader.dataset and train_dataloader.dataset have other .* class 0 is 'floor'"
    stopped(text, **{part('val'): other})
    runner = Runner.from_cfg(cfg)
    runner.train()
    last = str(Path(cfg.work_dir) / 'iter_2.pth')
    text = (
        "test_dataloader.dataset and the checkpoint have other .* 'floor' .* 'wall' in the latter"
    )
    stopped(text, 'test', load_from=last, **{part('test'): other})
    stopped('num_classes is 5, but test', 'test', load_from=last, **{part('test'): few})
    # To start another training, weights of other classes do.
    changed = cfg.copy()
    changed.merge_from_dict({part('train'): other, part('val'): other, 'load_from': last})
    changed.experiment_name = 'started'
    Runner.from_cfg(changed).train()


# --------------------------------------------------------------------------------- by the tools


def typed(root: Path, **more) -> list[str]:
    """The real leaf made small as a user would: options alone."""
    options = dotted(small_sizes(), 'model')
    for part in ('train', 'val', 'test'):
        dataset = f'{part}_dataloader.dataset'
        options += [
            f'{part}_dataloader.num_workers=0',
            f'{part}_dataloader.persistent_workers=False',
            f'{dataset}.data_root={root}',
            f'{dataset}.metainfo.classes=[{",".join(CLASSES)}]',
            f'{dataset}.pipeline.{2 if part == "train" else 1}.scale=({4 * CROP},{CROP})',
        ]
    options += [f'train_dataloader.dataset.pipeline.3.crop_size=({CROP},{CROP})', 'load_from=None']
    return options + [f'{key.replace("__", ".")}={value}' for key, value in more.items()]


def miou_in(text: str) -> float:
    return float(re.findall(r'mIoU: (\d+\.\d+)', text)[-1])


def miou_of_files(root: Path, predicted: Path) -> float:
    """From the label maps and the maps that were written, both counting classes from 1."""
    pairs = [
        (cv2.imread(str(file), -1), cv2.imread(str(predicted / file.name), -1))
        for file in sorted((root / 'annotations/validation').iterdir())
    ]
    labels = [np.where(label == 0, 255, label.astype(int) - 1) for label, _ in pairs]
    return direct_miou(labels, [prediction.astype(int) - 1 for _, prediction in pairs])


@pytest.mark.slow
def test_leaf_from_the_command_line_alone_and_in_two_processes(ade20k, tmp_path):
    leaf, port = str(ROOT / 'configs/ade20k/eva_mask2former.py'), str(free_port())
    path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
    short = dict(
        train_cfg__max_iters=2, train_cfg__val_interval=2, default_hooks__checkpoint__interval=2
    )
    status, text = tool(
        TRAIN, leaf, '--work-dir', 'one', '--cfg-options', *typed(ade20k, **short), folder=tmp_path
    )
    assert status == 0, text
    assert 'Iter(val) [3/3]' in text

    checkpoint, results = 'one/iter_2.pth', {}
    for name, command in {
        'one': (sys.executable, TEST, leaf, checkpoint),
        'two': (ROOT / 'tools/dist_test.sh', leaf, checkpoint, '2'),
        'views': (sys.executable, TEST, leaf, checkpoint, '--tta'),
    }.items():
        options = typed(ade20k, test_evaluator__output_dir=tmp_path / name)
        if name == 'views':
            views = 'tta_pipeline.1.transforms'
            options += [
                f'{views}.0.{i}.scale=({4 * s},{s})' for i, s in enumerate([32, 48, 64] * 2)
            ]
            options += [f'{views}.0.6.scale=(128,32)', f'{views}.3.0.size=({CROP},{CROP})']
        command = (*command, '--work-dir', f'test_{name}', '--cfg-options', *options)
        status, text = call(command, tmp_path, PATH=path, PORT=port)
        assert status == 0, text
        results[name] = miou_in(text)
        # Three images on two processes: each counts once.
        assert results[name] == pytest.approx(miou_of_files(ade20k, tmp_path / name), abs=0.01)
    assert results['one'] == results['two']

    command = (ROOT / 'tools/dist_train.sh', leaf, '2', '--work-dir', 'two_train')
    command += ('--cfg-options', *typed(ade20k, **short))
    status, text = call(command, tmp_path, PATH=path, PORT=str(free_port()))
    assert status == 0, text
    assert 'GPU number: 2' in text
    saved = torch.load(tmp_path / 'two_train/iter_2.pth', weights_only=False)['state_dict']
    assert saved['backbone.norm1.num_batches_tracked'] == 2
    assert all(torch.isfinite(value).all() for value in saved.values())


@pytest.mark.slow
def test_own_data_from_the_command_line(ade20k, tmp_path):
    """Pictures and maps without names of classes: train, and test what was trained."""
    leaf = str(ROOT / 'configs/ade20k/eva_mask2former_finetune.py')
    sizes = small_sizes()
    for key in ('num_classes', 'loss_cls'):  # found in the maps
        del sizes['decode_head'][key]
    options = [*dotted(sizes, 'model'), f'data_root={ade20k}', 'load_from=None']
    for part, place in (('train', 2), ('val', 1), ('test', 1)):
        options += [
            f'{part}_dataloader.num_workers=0',
            f'{part}_dataloader.persistent_workers=False',
            f'{part}_dataloader.dataset.pipeline.{place}.scale=({4 * CROP},{CROP})',
        ]
    options += [f'train_dataloader.dataset.pipeline.3.crop_size=({CROP},{CROP})']
    options += ['own_data.reduce_zero_label=True', 'train_cfg.max_iters=3']
    args = (TRAIN, leaf, '--work-dir', 'own', '--cfg-options', *options)
    status, text = tool(*args, folder=tmp_path)
    assert status == 0, text
    assert 'fitted to' in text
    assert '5 classes, 3 training and 3 validation images; 3 iterations of 1 images' in text
    scored = [float(value) for value in re.findall(r'mIoU: (\d+\.\d+)', text)]
    (best,) = (tmp_path / 'own').glob('best_mIoU_iter_*.pth')
    args = (TEST, 'own/eva_mask2former_finetune.py', best)
    status, text = tool(*args, folder=tmp_path)
    assert status == 0, text
    # The weights that were kept are those that were scored.
    assert miou_in(text) == pytest.approx(max(scored), abs=0.01)
    # The config that the run left runs on a picture.
    picture = next((ade20k / 'images/validation').iterdir())
    model = f'own/eva_mask2former_finetune.py:{best}'
    status, text = tool(INFER, picture, '--model', model, '--out', 'found', folder=tmp_path)
    assert status == 0, text
    (map_file,) = (tmp_path / 'found/maps').iterdir()
    assert cv2.imread(str(map_file), -1).shape == cv2.imread(str(picture)).shape[:2]
    # A map that no class fits is told before anything is trained.
    status, text = tool(
        TRAIN, leaf, '--cfg-options', *options, 'own_data.classes=[a,b,c]', folder=tmp_path
    )
    assert status == 1
    assert re.search(r'train\.py: label map .*\.png has the values 4 \(\d+ px\), 5', text)
    assert 'Traceback' not in text


def test_dry_run_reckons_with_the_backbone(ade20k, capsys):
    from eva_mm.engine.dry_run import dry_run

    cfg = shrunk_leaf('ade20k/eva_mask2former')
    cfg.load_from = None
    for part in ('train', 'val', 'test'):
        cfg[f'{part}_dataloader'].dataset.update(
            data_root=str(ade20k), metainfo=dict(classes=CLASSES)
        )
    cfg.train_dataloader.dataset.pipeline[3].crop_size = (CROP, CROP)
    cfg._filename = 'small.py'
    assert dry_run(cfg, 1) == 0
    text = capsys.readouterr().out
    assert re.search(r'activations of backbone and neck \(64 x 64 px, batch 1, float32\)', text)
    assert 'train: 3 samples, 5 classes' in text
    assert 'ready: this run can start' in text
    cfg.train_dataloader.dataset.metainfo.classes = CLASSES[:3]
    assert dry_run(cfg, 1) == 1
    assert 'model for the 3 classes of the train data: it has 5 outputs' in capsys.readouterr().out
