"""Kinetics-400's leaf from the command line, on small data in the real layout with a tiny model."""

import os
import re
import sys
from pathlib import Path

import pytest
from mmaction.registry import MODELS

from ..helpers import ROOT, free_port, load_config
from ..test_tools import TEST, TRAIN, call, tool
from .small import TINY, shrink_video, write_video

LEAF = 'kinetics/eva_g_k400'
LIST = str(ROOT / 'tools' / 'list_videos.py')


def options(frames=4, size=56):
    """`--cfg-options` that make the leaf tiny; what a user would have to say."""
    pipelines = {
        'train': {1: f'num_frames={frames}', 3: 'scale=(-1,64)', 4: f'input_size={size}',
                  5: f'scale=({size},{size})'},
        'val': {1: f'num_frames={frames}', 3: 'scale=(-1,64)', 4: f'crop_size={size}'},
        'test': {1: f'num_frames={frames}', 3: f'scale=(-1,{size})', 4: f'crop_size={size}'},
    }  # fmt: skip
    given = [f'model.backbone.{key}={value}' for key, value in TINY.items()]
    given += [f'model.backbone.num_frames={frames}', f'model.backbone.img_size={size}']
    given += [f'model.cls_head.in_channels={TINY["embed_dim"]}', 'model.cls_head.num_classes=2']
    for part, steps in pipelines.items():
        loader = f'{part}_dataloader'
        given += [f'{loader}.num_workers=0', f'{loader}.persistent_workers=False']
        given += [f'{loader}.dataset.pipeline.{i}.{text}' for i, text in steps.items()]
    given += ['train_dataloader.batch_size=2', 'train_cfg.max_iters=2', 'train_cfg.val_interval=2']
    given += ['default_hooks.checkpoint.interval=2', 'default_hooks.logger.interval=1']
    return ['--cfg-options', *given, 'load_from=k722.pth']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with data/kinetics400, lists made by the tools, and weights of a wider head."""
    root = tmp_path_factory.mktemp('user')
    data = root / 'data' / 'kinetics400'
    for part, count in (('train', 4), ('val', 3)):
        for number, name in enumerate(('arm wrestling', 'zumba')):
            for clip in range(count):
                identity = f'{part:_<8}{number}{clip}x'
                path = data / part / name / f'{identity}_000010_000020.mp4'
                write_video(path, 12 + clip)
    for part in ('train', 'val'):
        status, text = tool(LIST, data / part, '--out', data / f'{part}.txt', folder=root)
        assert status == 0, text
    (root / 'union.txt').write_text('abseiling\narm wrestling\nyoga\nzumba\n')
    rows = (ROOT / 'tools' / 'map_classes.py', data / 'classes.txt', '--union', 'union.txt')
    status, text = tool(*rows, '--out', data / 'k722_to_k400.npy', folder=root)
    assert status == 0, text
    save_published(root / 'k722.pth')
    return root


def save_published(path: Path) -> None:
    """Weights of 2 frames and 4 classes, as Kinetics-722's are of 8 and 722."""
    import torch

    cfg = shrink_video(load_config('kinetics/eva_g_k722', 'mmaction'), 4, num_frames=2)
    model = MODELS.build(cfg.model)
    torch.save(dict(state_dict=model.state_dict()), path)


def test_training_and_test(folder):
    status, text = tool(TRAIN, LEAF, *options(), folder=folder)
    assert status == 0, text
    assert re.search(r'Iter\(val\) .*acc/top1: \d\.\d+', text)
    checkpoint = folder / 'work_dirs' / 'kinetics' / 'eva_g_k400' / 'iter_2.pth'
    assert checkpoint.is_file()
    status, text = tool(TEST, LEAF, checkpoint, *options(), folder=folder)
    assert status == 0, text
    assert re.search(r'Iter\(test\) .*acc/top1: \d\.\d+', text)
    # Against a head of other classes.
    wrong = [*options(), 'model.cls_head.num_classes=3']
    status, text = tool(TEST, LEAF, checkpoint, *wrong, folder=folder)
    assert status == 1
    assert 'Traceback' not in text


@pytest.mark.slow
def test_two_processes(folder):
    path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
    for name, extra in (('train', []), ('test', ['two/iter_2.pth'])):
        launcher = str(ROOT / 'tools' / f'dist_{name}.sh')
        command = [launcher, LEAF, *extra, '2', '--work-dir', 'two', *options()]
        status, text = call(command, folder, PATH=path, PORT=str(free_port()))
        assert status == 0, text
        # Six videos: three for each process.
        assert re.search(r'acc/top1: \d\.\d+', text)
    single = tool(TEST, LEAF, 'two/iter_2.pth', *options(), *even(), folder=folder)[1]
    command = [
        str(ROOT / 'tools' / 'dist_test.sh'),
        LEAF,
        'two/iter_2.pth',
        '2',
        *options(),
        *even(),
    ]
    both = call(command, folder, PATH=path, PORT=str(free_port()))[1]
    accuracies = [re.search(r'acc/top1: (\d\.\d+)', text)[1] for text in (single, both)]
    assert accuracies[0] == accuracies[1]


def even():
    return ['test_dataloader.dataset.pipeline.1.clips=even']


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('model.cls_head.num_classes=3', 'model for the 2 classes of the train data: it has 3'),
        ('train_dataloader.dataset.ann_file=gone.txt', 'annotation file: gone.txt'),
        ('model.cls_head.class_rows=gone.npy', 'class mapping gone.npy'),
    ],
)
def test_dry_run_tells_what_is_missing(folder, option, message):
    status, text = tool(TRAIN, LEAF, '--dry-run', *options(), option, folder=folder)
    assert status == 1, text
    assert message in text
    assert text.rstrip().endswith('things missing')


def test_dry_run_of_clips(folder):
    status, text = tool(TRAIN, LEAF, '--dry-run', *options(), folder=folder)
    assert status == 0, text
    assert 'train: 8 samples, 2 classes' in text
    found = re.search(r'activations of .*\(4 x 56 x 56 px, batch 2, bfloat16\) +(\S+) GiB', text)
    assert float(found[1]) < 0.1
    assert 'class mapping data/kinetics400/k722_to_k400.npy: found' in text
    gone = next((folder / 'data' / 'kinetics400' / 'train' / 'zumba').iterdir())
    gone.rename(folder / 'aside.mp4')
    try:
        status, text = tool(TRAIN, LEAF, '--dry-run', *options(), folder=folder)
    finally:
        (folder / 'aside.mp4').rename(gone)
    assert status == 1
    assert re.search(r'videos: 1 of 8 sampled, such as .*zumba/train___1', text)


def test_own_videos(folder):
    """By configs/kinetics/eva_g_finetune.py, with a folder of validation videos that is named."""
    root = folder / 'data' / 'kinetics400'
    short = [o for o in options() if 'num_classes' not in o]
    short += [f'data_root={root}', 'own_data.val=val', 'train_cfg.max_iters=4']
    status, text = tool(TRAIN, 'kinetics/eva_g_finetune', *short, folder=folder)
    assert status == 0, text
    assert 'fitted to' in text
    assert '2 classes, 8 training and 6 validation videos' in text
    checkpoint = folder / 'work_dirs' / 'kinetics' / 'eva_g_finetune' / 'iter_4.pth'
    status, text = tool(TEST, 'kinetics/eva_g_finetune', checkpoint, *short, folder=folder)
    assert status == 0, text
    assert re.search(r'Iter\(test\) .*acc/top1: \d\.\d+', text)
