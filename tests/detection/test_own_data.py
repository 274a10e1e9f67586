"""Fine-tuning on a folder in COCO format: finding, splitting, fitting, and odd pictures."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS, METRICS, MODELS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, init_default_scope
from PIL import Image

from eva_mm.detection import own_data
from eva_mm.detection.own_data_files import find_annotations, find_images, split
from eva_mm.engine import launch
from eva_mm.errors import InputError

from ..helpers import ROOT, shrink_detector

LEAF = 'coco/eva_cascade_finetune'
SIDE = 40  # of images, in pixels
POLYGON = [4.0, 4.0, 30.0, 4.0, 30.0, 28.0, 4.0, 28.0]


def coco(files, categories=((1, 'cat'), (2, 'dog')), masks=True, area=True, size=(SIDE, SIDE)):
    """Content of an annotation file: on each image one instance, the classes in turn."""
    annotations = []
    for index, _ in enumerate(files):
        entry = dict(
            id=index + 1,
            image_id=index + 1,
            category_id=categories[index % len(categories)][0],
            bbox=[4.0, 4.0, 26.0, 24.0],
            iscrowd=0,
        )
        if masks:
            entry['segmentation'] = [POLYGON]
        if area:
            entry['area'] = 624.0
        annotations.append(entry)
    return dict(
        images=[
            dict(id=i + 1, file_name=name, width=size[0], height=size[1])
            for i, name in enumerate(files)
        ],
        annotations=annotations,
        categories=[dict(id=i, name=name) for i, name in categories],
    )


def picture(path: Path, size=(SIDE, SIDE), mode='RGB', **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)


def dump(path: Path, data: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, ensure_ascii=False), encoding='utf-8')
    return path


def put(root: Path, ann: str, folder: str, names=('a.jpg', 'b.jpg'), **options) -> Path:
    """Write an annotation file and its pictures."""
    for name in names:
        picture(root / folder / name)
    return dump(root / ann, coco(names, **options))


TRAIN, VAL = ('a.jpg', 'b.jpg', 'c.jpg'), ('x.jpg', 'y.jpg')


@pytest.fixture
def folder(tmp_path) -> Path:
    """A data set as COCO lays it out."""
    root = tmp_path / 'data'
    put(root, 'annotations/instances_train2017.json', 'train2017', TRAIN)
    put(root, 'annotations/instances_val2017.json', 'val2017', VAL)
    return root


def fit(root, work_dir, config=LEAF, **options) -> Config:
    """The config of a training run on a folder, as tools/train.py makes it."""
    cfg = launch.prepare_train_config(
        config, dict(data_root=str(root), **options), work_dir=str(work_dir)
    )
    init_default_scope('mmdet')
    return cfg


def infos(dataset_cfg) -> list[dict]:
    """What a data set knows of each of its images."""
    dataset = DATASETS.build(dataset_cfg)
    return [dataset.get_data_info(index) for index in range(len(dataset))]


def shrunk(cfg: Config, side: int = 128) -> Config:
    """The fitted config at test size; what the data decided stays."""
    classes = cfg.model.roi_head.bbox_head.num_classes
    shrink_detector(cfg, num_classes=classes)
    cfg.model.test_cfg.rpn.max_per_img = cfg.model.train_cfg.rpn_proposal.max_per_img = 50
    for part in ('train', 'val'):
        for transform in cfg[f'{part}_dataloader'].dataset.pipeline:
            if transform.type == 'LargeScaleJitter':
                transform.scale = (side, side)
            elif transform.type == 'ResizeShortestEdge':
                transform.scale = transform.max_size = side
    return cfg


def step_and_test(cfg: Config) -> tuple[dict, dict]:
    """One training step on all training images, then the AP on the validation images."""
    shrunk(cfg)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    wrapper = build_optim_wrapper(model, dict(cfg.optim_wrapper, type='OptimWrapper'))
    train = DATASETS.build(cfg.train_dataloader.dataset)
    batch = pseudo_collate([train[i] for i in range(len(train))])
    losses = model.train().train_step(batch, wrapper)
    assert all(torch.isfinite(torch.as_tensor(value)).all() for value in losses.values())
    cfg.model.test_cfg.rcnn.score_thr = 0.0
    val = DATASETS.build(cfg.val_dataloader.dataset)
    metric = METRICS.build(cfg.val_evaluator)
    metric.dataset_meta = val.metainfo
    with torch.no_grad():
        for index in range(len(val)):
            batch = pseudo_collate([val[index]])
            (sample,) = model.eval().test_step(batch)
            assert sample.pred_instances.labels.max() < len(val.metainfo['classes'])
            metric.process(batch, [sample.to_dict()])
    return losses, metric.evaluate(len(val))


# ---------------------------------------------------------------------------------------- layouts

LAYOUTS = {
    'coco': (
        ('annotations/instances_train2017.json', 'train2017'),
        ('annotations/instances_val2017.json', 'val2017'),
    ),
    'coco with images below one folder': (
        ('annotations/instances_train.json', 'images/train'),
        ('annotations/instances_val.json', 'images/val'),
    ),
    'short names': (('annotations/train.json', 'train'), ('annotations/val.json', 'val')),
    'one folder of images': (
        ('annotations/train.json', 'images'),
        ('annotations/val.json', 'images'),
    ),
    'roboflow': (
        ('train/_annotations.coco.json', 'train'),
        ('valid/_annotations.coco.json', 'valid'),
    ),
    'files at the top': (('train.json', 'photos'), ('val.json', 'photos')),
    'folders with images below': (
        ('train/annotations.json', 'train/images'),
        ('validation/annotations.json', 'validation/images'),
    ),
}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_layouts_are_found(layout, tmp_path):
    root = tmp_path / 'data'
    for (ann, images), names in zip(LAYOUTS[layout], (TRAIN, VAL)):
        put(root, ann, images, names)
    cfg = fit(root, tmp_path / 'work')
    for part, (ann, images), names in zip(('train', 'val'), LAYOUTS[layout], (TRAIN, VAL)):
        dataset = cfg[f'{part}_dataloader'].dataset
        assert dataset.ann_file == str(root / ann)
        assert dataset.data_prefix.img == str(root / images)
        paths = [info['img_path'] for info in infos(dataset)]
        assert paths == [str(root / images / name) for name in names]
    assert cfg.test_dataloader.dataset == cfg.val_dataloader.dataset
    assert cfg.val_evaluator.ann_file == cfg.test_evaluator.ann_file == dataset.ann_file


@pytest.mark.parametrize(
    ('ann', 'images'),
    [
        ('annotations.json', 'images'),
        ('instances.json', 'images'),
        ('annotations/instances_default.json', 'images'),
        ('_annotations.coco.json', '.'),
        ('result.json', 'pictures'),
        ('train/_annotations.coco.json', 'train'),
    ],
)
def test_a_single_file_is_split(ann, images, tmp_path):
    root, names = tmp_path / 'data', [f'{i}.jpg' for i in range(10)]
    put(root, ann, images, names)
    before = sorted(root.rglob('*'))
    cfg = fit(root, tmp_path / 'work')
    parts = [infos(cfg[f'{part}_dataloader'].dataset) for part in ('train', 'val')]
    paths = [{os.path.normpath(info['img_path']) for info in part} for part in parts]
    assert [len(part) for part in paths] == [8, 2]
    assert not paths[0] & paths[1]
    assert paths[0] | paths[1] == {os.path.normpath(root / images / name) for name in names}
    assert sorted(root.rglob('*')) == before
    assert {p.name for p in (tmp_path / 'work' / 'own_data').iterdir()} == {
        'split.json', 'train.json', 'val.json',
    }  # fmt: skip
    # The same in a test, whatever its work dir.
    again = launch.prepare_test_config(
        LEAF, cfg_options=dict(data_root=str(root)), work_dir=str(tmp_path / 'test')
    )
    assert Path(again.test_evaluator.ann_file).parent == tmp_path / 'test' / 'own_data_test'
    first, second = (Path(c.test_evaluator.ann_file).read_bytes() for c in (cfg, again))
    assert first == second


def test_a_split_depends_on_names_and_seed_alone():
    data = coco([f'{i}.jpg' for i in range(40)])

    def names(data, seed=0):
        return [{image['file_name'] for image in part['images']} for part in split(data, 0.2, seed)]

    train, val = names(data)
    assert len(val) == 8
    assert not train & val
    turned = dict(data, images=data['images'][::-1], annotations=data['annotations'][::-1])
    assert names(turned) == [train, val]
    assert names(data, seed=1) != [train, val]
    # Each image has its instances in its own part.
    for part in split(data, 0.2, 0):
        ids = {image['id'] for image in part['images']}
        assert {entry['image_id'] for entry in part['annotations']} == ids


def test_a_split_leaves_every_class_something_to_learn_and_no_file_in_both_parts():
    names = [f'{i}.jpg' for i in range(30)]
    categories = [(i, str(i)) for i in range(1, 26)]  # 20 of 25 have one image alone
    data = coco(names, categories=categories)
    data['images'] += [dict(data['images'][i], id=100 + i) for i in range(5)]  # files listed twice
    for seed in range(5):
        train, val = split(data, 0.3, seed)
        assert {entry['category_id'] for entry in train['annotations']} == {
            i for i, _ in categories
        }
        files = [{image['file_name'] for image in part['images']} for part in (train, val)]
        assert files[1]
        assert not files[0] & files[1]


def test_a_split_that_would_take_the_last_image_of_a_class_is_refused():
    with pytest.raises(InputError, match='the only one of some class; name a file'):
        split(coco(['a.jpg', 'b.jpg']), 0.15, 0)


def test_a_split_holds_out_images_with_instances_however_many_have_none():
    data = coco([f'{i}.jpg' for i in range(100)], categories=[(1, 'cat')])
    data['annotations'] = data['annotations'][:10]
    for seed in range(5):
        train, val = split(data, 0.2, seed)
        assert [len(part['annotations']) for part in (train, val)] == [8, 2]
        assert [len(part['images']) for part in (train, val)] == [80, 20]


def test_augmented_copies_of_an_image_stay_in_one_part():
    names = [f'{i}_jpg.rf.{i * 3 + copy:032x}.jpg' for i in range(20) for copy in range(3)]
    parts = split(coco(names, categories=[(1, 'cat')]), 0.2, 0)
    sources = [{im['file_name'].split('.rf.')[0] for im in part['images']} for part in parts]
    assert [len(part) for part in sources] == [16, 4]
    assert not sources[0] & sources[1]
    assert [len(part['images']) for part in parts] == [48, 12]


@pytest.fixture
def unsplit(tmp_path) -> Path:
    root = tmp_path / 'data'
    put(root, 'annotations.json', 'images', [f'{i}.jpg' for i in range(10)])
    return root


def contents(path: Path) -> dict:
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in path.rglob('*') if p.is_file()}


def test_a_split_is_kept_and_another_is_refused(unsplit, tmp_path):
    work_dir = tmp_path / 'work'
    fit(unsplit, work_dir, **{'own_data.split_seed': 1})
    before = contents(work_dir)
    assert len(before) == 3
    fit(unsplit, work_dir, **{'own_data.split_seed': 1})

    def test(**options):
        return launch.prepare_test_config(
            LEAF, cfg_options=dict(data_root=str(unsplit), **options), work_dir=str(work_dir)
        )

    cfg = test(**{'own_data.split_seed': 1})
    assert cfg.test_evaluator.ann_file == str(work_dir / 'own_data' / 'val.json')
    with pytest.raises(InputError, match=r'own_data\.split_seed was 1, now it is 0\. .* --w'):
        test()
    with pytest.raises(InputError, match=r'own_data\.val_fraction was 0\.15, now it is 0\.5'):
        fit(unsplit, work_dir, **{'own_data.split_seed': 1, 'own_data.val_fraction': 0.5})
    put(unsplit, 'annotations.json', 'images', [f'{i}.jpg' for i in range(11)])
    with pytest.raises(InputError, match=r'annotation file \(sha256\) was'):
        test(**{'own_data.split_seed': 1})
    assert contents(work_dir) == before


def test_a_checkpoint_is_not_tested_on_what_it_was_trained_on(unsplit, tmp_path):
    length = fit(unsplit, tmp_path / 'work', **{'own_data.split_seed': 1}).fitted_length
    checkpoint = str(tmp_path / 'iter_1.pth')
    torch.save(dict(meta=dict(fitted_length=dict(length)), state_dict={}), checkpoint)

    def test(seed):
        options = {'data_root': str(unsplit), 'own_data.split_seed': seed, 'load_from': None}
        work_dir = str(tmp_path / f'other_{seed}')
        return launch.prepare_test_config(LEAF, checkpoint, options, work_dir=work_dir)

    assert test(1).load_from == checkpoint
    with pytest.raises(InputError, match=r'iter_1\.pth was trained on another split'):
        test(0)


def test_a_node_that_does_not_see_the_first_ones_work_dir_splits_alike(
    unsplit, tmp_path, monkeypatch
):
    here = fit(unsplit, tmp_path / 'work')

    def elsewhere(read):
        data = read()
        shutil.rmtree(tmp_path / 'unseen')
        return data

    monkeypatch.setattr(own_data, 'on_first_process', elsewhere)
    there = fit(unsplit, tmp_path / 'unseen')
    assert infos_of(there) == infos_of(here)
    assert there.fitted_length == here.fitted_length


def test_a_test_on_other_data_leaves_those_of_the_training_alone(folder, tmp_path):
    work_dir, unsplit = tmp_path / 'work', tmp_path / 'unsplit'
    put(unsplit, 'annotations.json', 'images', [f'{i}.jpg' for i in range(10)])
    fit(folder, work_dir)  # has a validation file, so that nothing is split
    for _ in range(2):
        cfg = launch.prepare_test_config(
            LEAF, cfg_options=dict(data_root=str(unsplit)), work_dir=str(work_dir)
        )
    init_default_scope('mmdet')
    assert infos(cfg.test_dataloader.dataset)
    assert {path.name for path in work_dir.iterdir()} == {'own_data_test'}


def test_a_dry_run_leaves_nothing_behind(unsplit, tmp_path):
    options, work_dir = dict(data_root=str(unsplit)), tmp_path / 'work'
    dry = launch.prepare_train_config(LEAF, options, str(work_dir), for_dry_run=True)
    assert len(infos_of(dry)) == 8
    assert not work_dir.exists()
    cfg = fit(unsplit, work_dir)
    assert infos_of(dry) == infos_of(cfg)
    again = launch.prepare_train_config(LEAF, options, str(work_dir), for_dry_run=True)
    assert again.train_dataloader == cfg.train_dataloader


def infos_of(cfg: Config) -> list[str]:
    init_default_scope('mmdet')
    return [info['img_path'] for info in infos(cfg.train_dataloader.dataset)]


def test_explicit_files_win(folder, tmp_path):
    put(folder, 'more/everything.json', 'elsewhere', ('m.jpg', 'n.jpg'))
    cfg = fit(
        folder,
        tmp_path / 'work',
        **{
            'own_data.train_ann': 'more/everything.json',
            'own_data.val_ann': str(folder / 'annotations' / 'instances_train2017.json'),
            'own_data.train_images': 'elsewhere',
        },
    )
    assert cfg.train_dataloader.dataset.ann_file == str(folder / 'more/everything.json')
    assert cfg.train_dataloader.dataset.data_prefix.img == str(folder / 'elsewhere')
    assert cfg.val_evaluator.ann_file == str(folder / 'annotations/instances_train2017.json')
    assert cfg.val_dataloader.dataset.data_prefix.img == str(folder / 'train2017')


# ----------------------------------------------------------------------------------------- errors


def _two_train_files(root):
    put(root, 'annotations/instances_train2014.json', 'train2017', TRAIN)


def _only_val(root):
    (root / 'annotations' / 'instances_train2017.json').unlink()


def _no_images(root):
    for path in (root / 'train2017').iterdir():
        path.rename(root / 'train2017' / f'_{path.name}')


def _images_twice(root):
    for name in TRAIN:
        picture(root / 'train_old' / name)


def _some_masks(root):
    data = coco(TRAIN)
    del data['annotations'][1]['segmentation']
    dump(root / 'annotations' / 'instances_train2017.json', data)


def _shared_image(root):
    dump(root / 'annotations' / 'instances_val2017.json', coco(['../train2017/a.jpg', 'x.jpg']))


def _linked_image(root):
    (root / 'val2017' / 'x.jpg').unlink()
    os.symlink(root / 'train2017' / 'a.jpg', root / 'val2017' / 'x.jpg')


def _crowds_alone(root):
    data = coco(VAL)
    for entry in data['annotations']:
        entry['iscrowd'] = 1
    dump(root / 'annotations' / 'instances_val2017.json', data)


def _other_ids(root):
    dump(root / 'annotations/instances_val2017.json', coco(VAL, ((1, 'dog'), (2, 'cat'))))


def _new_class(root):
    dump(root / 'annotations/instances_val2017.json', coco(VAL, ((1, 'cat'), (7, 'emu'))))


def _no_annotations(root):
    dump(root / 'annotations/instances_train2017.json', dict(coco(TRAIN), annotations=[]))


def _twice(root):
    data = coco(TRAIN)
    data['images'][1]['id'] = 1
    dump(root / 'annotations/instances_train2017.json', data)


def _spoilt(path, section, **values):
    """An error case: the second entry of a section of the training file has other values."""

    def spoil(root):
        data = coco(TRAIN)
        data[section][1].update(values)
        dump(root / path, data)

    spoil.__name__ = f'_{section}_{next(iter(values))}'
    return spoil


_TRAIN_FILE = 'annotations/instances_train2017.json'
ERRORS = {
    _spoilt(_TRAIN_FILE, 'annotations', bbox=[1, 2]): (
        'instances_train2017.json: annotation id=2: bbox should be [x, y, width, height]',
    ),
    _spoilt(_TRAIN_FILE, 'annotations', image_id=77): ('id=2: image 77 is not listed',),
    _spoilt(_TRAIN_FILE, 'annotations', category_id=77): ('id=2: category 77 is not listed',),
    _spoilt(_TRAIN_FILE, 'images', file_name=7): ('image id=2 has file_name 7, expected a text',),
    _spoilt(_TRAIN_FILE, 'images', id=[1]): ('images hold id=[1], expected a number',),
    _two_train_files: (
        'meant for train? Found annotations/instances_train2014.json, '
        'annotations/instances_train2017.json',
        'own_data.train_ann=FILE',
    ),
    _only_val: ('Found annotations/instances_val2017.json', 'own_data.train_ann=FILE'),
    _no_images: ('of 3 looked for: 0 in', 'a.jpg is not in', 'own_data.train_images=FOLDER'),
    _images_twice: ('several folders, train2017, train_old', 'own_data.train_images=FOLDER'),
    _some_masks: ('1 of 3 annotations have no mask', 'first id=2', 'own_data.masks=False'),
    _shared_image: ('1 images are in the training and in the validation', 'own_data.val_ann=FILE'),
    _linked_image: ('1 images are in the training and in the validation', 'own_data.val_ann=FILE'),
    _crowds_alone: ('instances_val2017.json: none of its annotations is an instance',),
    _other_ids: ("category id=1 is 'dog', in", "it is 'cat'"),
    _new_class: ("category id=7 is 'emu'", 'no category of this id'),
    _no_annotations: ('instances_train2017.json lists no annotations',),
    _twice: ('images are not unique, id=1 2 times',),
}


@pytest.mark.parametrize('spoil', ERRORS, ids=lambda f: f.__name__.strip('_'))
def test_errors_name_what_was_found_and_what_to_do(spoil, folder, tmp_path):
    spoil(folder)
    with pytest.raises(InputError) as error:
        fit(folder, tmp_path / 'work')
    for part in ERRORS[spoil]:
        assert part in str(error.value)
    assert launch.plain_message(error.value)


@pytest.mark.parametrize(
    ('option', 'value', 'text'),
    [
        ('val_fraction', 15, 'a share between 0 and 1, but got 15'),
        ('val_fraction', '15%', "a share between 0 and 1, but got '15%'"),
        ('num_validations', 0, '1 or more, but got 0'),
        ('epochs', -1, 'above 0, but got -1'),
        ('split_seed', 0.5, 'a whole number, but got 0.5'),
    ],
)
def test_options_out_of_range(option, value, text, folder, tmp_path):
    with pytest.raises(InputError, match=f'own_data.{option} should be {text}'):
        fit(folder, tmp_path / 'work', **{f'own_data.{option}': value})


def test_images_beyond_the_sample_are_looked_for_too(tmp_path):
    root, names = tmp_path / 'data', [f'{i:02d}.jpg' for i in range(50)]
    put(root, 'annotations.json', 'images', names)
    (root / 'images' / '03.jpg').unlink()  # every second one is in the sample
    with pytest.raises(InputError, match=r'1 of \d\d images are not in .*images, such as 03\.jpg'):
        fit(root, tmp_path / 'work')


def test_boxes_that_leave_their_image_are_told(folder, tmp_path, monkeypatch):
    data = coco(TRAIN)
    data['annotations'][1]['bbox'] = [20.0, 4.0, 30.0, 28.0]  # corners
    dump(folder / 'annotations/instances_train2017.json', data)
    told = []
    monkeypatch.setattr(own_data, 'print_log', lambda text, **_: told.append(text))
    fit(folder, tmp_path / 'work')
    assert '1 of 3 boxes leave their image, first id=2; bbox should be' in told[0]


def test_validation_images_without_a_validation_file(unsplit, tmp_path):
    with pytest.raises(InputError, match=r'own_data\.val_images=there: no annotation file'):
        fit(unsplit, tmp_path / 'work', **{'own_data.val_images': 'there'})


def test_folders_named_at_the_end_are_found_before_those_of_the_other_part(tmp_path):
    root = tmp_path / 'data'
    put(root, 'annotations/instances_train.json', 'images', TRAIN)
    put(root, 'annotations/instances_val.json', 'images_val', TRAIN)
    cfg = fit(root, tmp_path / 'work')
    assert cfg.train_dataloader.dataset.data_prefix.img == str(root / 'images')
    assert cfg.val_dataloader.dataset.data_prefix.img == str(root / 'images_val')


def test_a_named_validation_file_is_not_asked_about(tmp_path):
    root = tmp_path / 'data'
    put(root, 'data.json', 'images', TRAIN)
    put(root, 'holdout.json', 'images', VAL)
    cfg = fit(root, tmp_path / 'work', **{'own_data.val_ann': 'holdout.json'})
    assert cfg.train_dataloader.dataset.ann_file == str(root / 'data.json')


def test_the_length_that_the_command_line_sets_is_noted(folder, tmp_path):
    cfg = fit(folder, tmp_path / 'work', **{'train_cfg.max_iters': 77})
    assert cfg.fitted_length.max_iters == cfg.train_cfg.max_iters == 77


def test_the_best_checkpoint_is_chosen_by_what_is_measured(folder, tmp_path):
    cfg = fit(folder, tmp_path / 'work', **{'val_evaluator.metric': 'segm'})
    assert cfg.val_evaluator.metric == 'segm'
    assert cfg.default_hooks.checkpoint.save_best == 'coco/segm_mAP'


@pytest.mark.parametrize(
    ('root', 'text'),
    [
        (None, 'needs a folder in COCO format: --cfg-options data_root=DIR'),
        ('nowhere', 'data_root=nowhere should be a folder in COCO format, but it does not exist'),
        (str(ROOT / 'setup.py'), 'but it is a file'),
        (str(ROOT / 'docs'), 'Found .*checkpoints.md, .*; name it: own_data.train_ann=FILE'),
    ],
)
def test_wrong_roots(root, text, tmp_path):
    options = {} if root is None else dict(data_root=root)
    with pytest.raises(InputError, match=text):
        launch.prepare_train_config(LEAF, options, work_dir=str(tmp_path))


def test_an_option_that_names_nothing(folder, tmp_path):
    with pytest.raises(InputError, match=r'own_data\.val_ann=no\.json: neither .* nor no\.json'):
        fit(folder, tmp_path, **{'own_data.val_ann': 'no.json'})


def test_one_image_cannot_be_split(tmp_path):
    put(tmp_path / 'data', 'annotations.json', 'images', ['a.jpg'])
    with pytest.raises(InputError, match=r'annotations\.json: 1 image cannot be split'):
        fit(tmp_path / 'data', tmp_path / 'work')


def test_the_tool_prints_one_line(tmp_path):
    command = [sys.executable, 'tools/train.py', f'configs/{LEAF}.py', '--dry-run']
    command += ['--work-dir', str(tmp_path), '--cfg-options', f'data_root={tmp_path}']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f'train.py: {tmp_path}: no annotation file of training images')
    assert 'Traceback' not in done.stderr


# ----------------------------------------------------------------------------------------- fitting


def test_the_schedule_follows_the_data_and_the_total_batch(folder, tmp_path):
    names = [f'{i}.jpg' for i in range(96)]
    put(folder, 'annotations/instances_train2017.json', 'train2017', names)
    cfg = fit(folder, tmp_path, **{'own_data.min_iterations': 10})
    assert cfg.train_cfg.max_iters == 25 * 96
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(1e-4 / 8)
    warm_up, steps = cfg.param_scheduler
    assert warm_up.end == 241
    assert steps.milestones == [round(2400 * 8 / 9), round(2400 * 44999 / 45000)]
    assert cfg.train_cfg.val_interval == cfg.default_hooks.checkpoint.interval == 267
    four = launch.prepare_train_config(
        LEAF,
        {'data_root': str(folder), 'own_data.min_iterations': 10},
        work_dir=str(tmp_path),
        for_dry_run=True,
        num_gpus=4,
        accumulate=4,
        auto_scale_lr=True,  # nothing is left for it to do
    )
    assert four.optim_wrapper.optimizer.lr == pytest.approx(1e-4 / 2)
    assert four.train_cfg.max_iters == 25 * 96 // 16 * 4  # passes
    assert four.param_scheduler[1].milestones[0] == round(150 * 8 / 9)  # updates


def test_few_images_still_get_updates(folder, tmp_path):
    assert fit(folder, tmp_path).train_cfg.max_iters == 1000
    for batch, updates in ((8, 125), (64, 100)):  # 1,000 images; 100 updates
        cfg = fit(folder, tmp_path, **{'train_dataloader.batch_size': batch})
        assert cfg.train_cfg.max_iters == updates


def checkpoint_of(cfg: Config, path: Path) -> str:
    """A checkpoint with what the hook notes of a run with this config."""
    noted = dict(meta=dict(iter=3, seed=5), message_hub={}, optimizer={}, state_dict={})
    hook = HOOKS.build(dict(type='SafeCheckpointHook', interval=1))
    hook.before_save_checkpoint(SimpleNamespace(cfg=cfg), noted)
    torch.save(noted, path)
    return str(path)


def test_a_run_is_resumed_with_the_length_it_was_fitted_to(unsplit, tmp_path):
    cfg = fit(unsplit, tmp_path / 'work')
    saved, checkpoint = tmp_path / 'saved.py', checkpoint_of(cfg, tmp_path / 'iter_3.pth')
    cfg.dump(str(saved))
    options = dict(data_root=str(unsplit))

    def resume(config=LEAF, **more):
        return launch.prepare_train_config(
            config, {**options, **more}, str(tmp_path / 'work'), resume=checkpoint
        )

    assert resume().randomness.seed == 5
    batch = {'train_dataloader.batch_size': 4}
    for config in (LEAF, str(saved)):
        with pytest.raises(InputError, match='images_per_update was 1, now it is 4'):
            resume(config, **batch)
    with pytest.raises(InputError, match='max_iters was 1000, now it is 1600'):
        resume(**{'own_data.epochs': 200})
    with pytest.raises(InputError, match='split was'):
        launch.prepare_train_config(
            LEAF, {**options, 'own_data.split_seed': 1}, str(tmp_path / 'b'), resume=checkpoint
        )


def test_the_command_line_wins(folder, tmp_path):
    cfg = fit(
        folder,
        tmp_path,
        **{
            'train_cfg.max_iters': 90,
            'optim_wrapper.optimizer.lr': 0.5,
            'val_evaluator.metric': 'segm',
        },
    )
    assert cfg.train_cfg.max_iters == 90
    assert cfg.param_scheduler[1].milestones[0] == 80
    assert cfg.param_scheduler[0].end == 10
    assert cfg.optim_wrapper.optimizer.lr == 0.5
    assert cfg.val_evaluator.metric == 'segm'
    assert cfg.train_cfg.val_interval == 10


def test_the_saved_config_runs_as_it_is(folder, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr('eva_mm.detection.own_data.print_log', lambda text, **_: told.append(text))
    cfg = fit(folder, tmp_path / 'work')
    saved = tmp_path / 'saved.py'
    cfg.dump(str(saved))
    again = launch.prepare_train_config(str(saved), for_dry_run=True)
    assert {**again.to_dict()} == {**cfg.to_dict()}
    again = launch.prepare_train_config(str(saved), num_gpus=8, for_dry_run=True)
    assert again.param_scheduler == cfg.param_scheduler
    assert re.search('fitted to 1 images per update, now it is 8', told[-1])
    test = launch.prepare_test_config(str(saved))
    assert test.test_dataloader == cfg.test_dataloader
    with pytest.raises(InputError, match='is fitted to .*; for other data start from'):
        launch.prepare_train_config(str(saved), dict(data_root=str(tmp_path)))
    os.symlink(folder, tmp_path / 'link')
    launch.prepare_train_config(str(saved), dict(data_root=str(tmp_path / 'link')))
    for prepare in (launch.prepare_train_config, launch.prepare_test_config):
        with pytest.raises(InputError, match=r'own_data\.epochs: .*saved.py is fitted to'):
            prepare(str(saved), cfg_options={'own_data.epochs': 3})


def test_areas_and_classes_that_a_validation_file_lacks_are_added_in_a_copy(folder, tmp_path):
    val = coco(VAL, area=False)
    del val['categories'][1], val['annotations'][1]
    original = dump(folder / 'annotations/instances_val2017.json', val).read_bytes()
    cfg = fit(folder, tmp_path / 'work')
    assert (folder / 'annotations/instances_val2017.json').read_bytes() == original
    copy = json.loads(Path(cfg.val_evaluator.ann_file).read_text())
    assert [c['name'] for c in copy['categories']] == ['cat', 'dog']
    assert copy['annotations'][0]['area'] == pytest.approx(26 * 24, rel=0.1)
    assert {**copy, 'annotations': 0} == {**val, 'annotations': 0, 'categories': copy['categories']}
    step_and_test(cfg)


def test_polygons_of_two_points_are_left_out_of_both_parts(folder, tmp_path):
    for part, names in (('train', TRAIN), ('val', VAL)):
        data = coco(names)
        extra = dict(data['annotations'][0], id=10, segmentation=[[4, 4, 30, 28]])
        data['annotations'].append(extra)
        data['annotations'][0]['segmentation'] = [POLYGON, [1, 1, 2, 2]]
        dump(folder / f'annotations/instances_{part}2017.json', data)
    cfg = fit(folder, tmp_path / 'work')
    metric = json.loads(Path(cfg.val_evaluator.ann_file).read_text())['annotations']
    (first, second) = infos(cfg.val_dataloader.dataset)
    seen = {i['ann_id']: i['mask'] for info in (first, second) for i in info['instances']}
    assert {entry['id']: entry['segmentation'] for entry in metric} == seen
    assert seen == {1: [POLYGON], 2: [POLYGON]}
    # A test on another file leaves the one of the training where it is.
    before = contents(tmp_path / 'work')
    data['annotations'][1]['id'] = 20
    dump(folder / 'other.json', data)
    other = launch.prepare_test_config(
        LEAF,
        cfg_options={'data_root': str(folder), 'own_data.val_ann': 'other.json'},
        work_dir=str(tmp_path / 'work'),
    )
    assert other.test_evaluator.ann_file != cfg.val_evaluator.ann_file
    assert before.items() <= contents(tmp_path / 'work').items()


def test_classes_without_instances_are_told(folder, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr('eva_mm.detection.own_data.print_log', lambda text, **_: told.append(text))
    put(folder, 'annotations/instances_train2017.json', 'train2017', ['a.jpg'])
    fit(folder, tmp_path)
    (text,) = told
    assert 'classes without a training instance (1): dog' in text
    assert re.search(r'train: 1 images with 1 instances, .*instances_train2017.json', text)


# --------------------------------------------------------------------- kinds of data, to the metric

CATEGORIES = {
    'one class': [(1, 'thing')],
    '500 classes': [(i, f'class {i}') for i in range(1, 501)],
    'ids with gaps': [(0, 'none'), (7, 'seven'), (90, 'ninety'), (1203, 'many')],
    'non-ASCII names': [(1, '猫'), (2, 'Übergröße'), (3, 'naïve "кот"'), (4, "l'été\t🐈")],
}


@pytest.mark.parametrize('masks', [True, False], ids=['masks', 'boxes'])
@pytest.mark.parametrize('kind', CATEGORIES)
def test_classes_are_those_of_the_file(kind, masks, tmp_path):
    root, categories = tmp_path / 'data', CATEGORIES[kind]
    options = dict(categories=categories, masks=masks)
    put(root, 'annotations/train.json', 'train', TRAIN, **options)
    put(root, 'annotations/val.json', 'val', VAL, **options)
    cfg = fit(root, tmp_path / 'work')
    head = cfg.model.roi_head
    assert head.bbox_head.num_classes == len(categories)
    assert masks is (head.mask_head is not None)
    assert not masks or head.mask_head.num_classes == len(categories)
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    assert dataset.metainfo['classes'] == tuple(name for _, name in categories)
    saved = tmp_path / 'saved.py'
    cfg.dump(str(saved))
    losses, values = step_and_test(launch.load_config(str(saved)))
    assert ('loss_mask' in losses) is masks
    assert 'coco/bbox_mAP' in values
    assert ('coco/segm_mAP' in values) is masks


@pytest.mark.parametrize('empty', [None, [], [[4, 4, 30, 28]]], ids=['none', 'empty', 'two points'])
def test_boxes_alone_leave_the_mask_head_out(empty, folder, tmp_path):
    for part, names in (('train', TRAIN), ('val', VAL)):
        data = coco(names, masks=False)
        for entry in data['annotations']:
            if empty is not None:
                entry['segmentation'] = empty
        dump(folder / f'annotations/instances_{part}2017.json', data)
    cfg = fit(folder, tmp_path)
    assert cfg.val_evaluator.metric == cfg.test_evaluator.metric == 'bbox'
    load = next(t for t in cfg.train_dataloader.dataset.pipeline if t.type == 'LoadAnnotations')
    assert load.with_mask is False
    losses, values = step_and_test(cfg)
    assert 'loss_mask' not in losses
    assert not any('segm' in key for key in values)


def test_masks_can_be_left_out(folder, tmp_path):
    cfg = fit(folder, tmp_path, **{'own_data.masks': False})
    assert 'loss_mask' not in step_and_test(cfg)[0]


def test_weights_with_a_mask_head_start_a_box_detector(folder, tmp_path):
    weights = shrunk(fit(folder, tmp_path)).model
    state = MODELS.build(weights).state_dict()
    cfg = shrunk(fit(folder, tmp_path, **{'own_data.masks': False}))
    model = MODELS.build(cfg.model)
    file = tmp_path / 'weights.pth'
    torch.save(dict(state_dict=state), file)
    from mmengine.runner import load_checkpoint

    load_checkpoint(model, str(file))
    own = model.state_dict()
    assert own
    assert all(torch.equal(value, state[key]) for key, value in own.items())


def test_run_lengths_become_bitmaps(folder, tmp_path):
    import pycocotools.mask as mask_utils

    for part, names in (('train', TRAIN), ('val', VAL)):
        data = coco(names, area=False)
        for entry in data['annotations']:
            (code,) = mask_utils.frPyObjects([POLYGON], SIDE, SIDE)
            entry['segmentation'] = dict(size=[SIDE, SIDE], counts=code['counts'].decode())
        dump(folder / f'annotations/instances_{part}2017.json', data)
    cfg = fit(folder, tmp_path)
    losses, values = step_and_test(cfg)
    assert 'loss_mask' in losses
    assert 'coco/segm_mAP' in values


# ------------------------------------------------------------------------------------ odd pictures

ROTATED = Image.Exif()
ROTATED[0x0112] = 6  # to be turned by 90 degrees
PICTURES = {
    'grayscale': dict(mode='L'),
    'grayscale png': dict(mode='L', suffix='png'),
    'RGBA': dict(mode='RGBA', suffix='png'),
    'CMYK': dict(mode='CMYK'),
    'EXIF': dict(size=(48, 96), stored=(96, 48), exif=ROTATED.tobytes()),
    '30 px': dict(size=(30, 30)),
    '30 x 1000 px': dict(size=(1000, 30)),
    '6000 px': dict(size=(6000, 4000)),
}


@pytest.mark.parametrize('kind', PICTURES)
def test_odd_pictures_train_and_test(kind, tmp_path):
    options = dict(PICTURES[kind])
    size, suffix = options.pop('size', (SIDE, SIDE)), options.pop('suffix', 'jpg')
    stored = options.pop('stored', size)
    root = tmp_path / 'data'
    for part in ('train', 'val'):
        picture(root / part / f'{part}.{suffix}', stored, **options)
        data = coco([f'{part}.{suffix}'], size=size)
        (entry,) = data['annotations']
        right, bottom = (side - 2.0 for side in size)
        entry.update(
            segmentation=[[4.0, 4.0, right, 4.0, right, bottom, 4.0, bottom]],
            bbox=[4.0, 4.0, right - 4, bottom - 4],
            area=(right - 4) * (bottom - 4),
        )
        dump(root / 'annotations' / f'{part}.json', data)
    losses, values = step_and_test(fit(root, tmp_path / 'work'))
    assert losses['loss_mask'] > 0
    assert {'coco/bbox_mAP', 'coco/segm_mAP'} <= values.keys()


@pytest.mark.parametrize('size', [(30, 30), (6000, 4000)], ids=['30 px', '6000 px'])
def test_sizes_of_the_network_input_at_full_size(size, folder, tmp_path):
    """The pipelines of the leaf as they are, without a model."""
    for part, names in (('train', TRAIN), ('val', VAL)):
        picture(folder / f'{part}2017' / names[0], size)
        dump(folder / f'annotations/instances_{part}2017.json', coco(names[:1], size=size))
    cfg = fit(folder, tmp_path)
    sample = DATASETS.build(cfg.val_dataloader.dataset)[0]
    assert max(sample['inputs'].shape[1:]) == 1280
    assert sample['data_samples'].ori_shape == size[::-1]
    train = DATASETS.build(cfg.train_dataloader.dataset)[0]
    assert max(train['inputs'].shape[1:]) <= 1280


def test_images_are_looked_for_by_a_sample(tmp_path):
    """Names that are in two folders of the data set are one image when one is a link."""
    root = tmp_path / 'data'
    ann = put(root, 'annotations/train.json', 'train', TRAIN)
    os.symlink(root / 'train', root / 'train_link')
    assert find_images(root, ann, json.loads(ann.read_text()), 'train') == root / 'train'
    assert find_annotations(root, 'val') is None


# ----------------------------------------------------------------------------------------- the run


def test_the_demo_has_the_types_of_its_leaf():
    from ..helpers import load_config
    from ..test_configs import types_of

    assert types_of(load_config('demo/finetune')) == types_of(load_config(LEAF))


@pytest.mark.slow
@pytest.mark.parametrize('processes', [1, 2])
def test_train_and_test_from_the_command_line(processes, tmp_path):
    """A folder without validation file, by one process and by two; then its own saved config."""
    root, work_dir = tmp_path / 'data', tmp_path / 'work'
    names = [f'{i}.jpg' for i in range(8)]
    put(root, 'annotations.json', 'images', names, masks=False, categories=[(3, '猫')])
    options = [f'data_root={root}', 'train_cfg.max_iters=4', 'train_dataloader.batch_size=2']
    launcher = ['--launcher', 'pytorch'] if processes > 1 else []
    python = [sys.executable]
    if processes > 1:
        python += ['-m', 'torch.distributed.run', f'--nproc_per_node={processes}', '--standalone']

    def run(*command):
        done = subprocess.run(
            [*python, *command, *launcher],
            cwd=ROOT, capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout + done.stderr

    text = run(
        'tools/train.py', 'configs/demo/finetune.py', '--work-dir', str(work_dir),
        '--cfg-options', *options,
    )  # fmt: skip
    assert 'coco/bbox_mAP' in text
    checkpoint = str(work_dir / 'iter_4.pth')
    saved = str(work_dir / 'finetune.py')
    values = []
    for command in (
        ['configs/demo/finetune.py', checkpoint, '--cfg-options', f'data_root={root}'],
        [saved, checkpoint],
    ):
        text = run('tools/test.py', *command, '--work-dir', str(tmp_path / 'test'))
        values.append(re.findall(r'coco/bbox_mAP: (\S+)', text)[-1])
    assert values[0] == values[1]
    assert 'nothing' in run('tools/train.py', saved, '--dry-run')
