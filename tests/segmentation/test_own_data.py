"""A config fitted to pictures and label maps of one's own."""

import copy
import math

import numpy as np
import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS
from mmseg.registry import DATASETS, MODELS

from eva_mm.engine.layer_decay import param_group_table
from eva_mm.errors import InputError, MissingFileError, UsageError
from eva_mm.segmentation.own_data import fit_to_data

from ..helpers import load_config
from .scenes import make_pairs, save_pair

LEAF = 'ade20k/eva_mask2former_finetune'
NAMES = ['road', 'tree', 'house', 'sky', 'car']


def fitted(root, images_per_update=4, kept=(), purpose='train', **changes):
    cfg = load_config(LEAF, 'mmseg')
    cfg.data_root = str(root)
    cfg.merge_from_dict(changes)
    fit_to_data(cfg, images_per_update, kept, purpose)
    return cfg


def dataset_of(cfg, part):
    dataset = copy.deepcopy(cfg[f'{part}_dataloader'].dataset)
    dataset.pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations'),
        dict(type='PackSegInputs'),
    ]
    return DATASETS.build(dataset)


@pytest.fixture
def root(tmp_path):
    """mmseg's usual layout under ADE20K's names."""
    for part, number in (('training', 6), ('validation', 2)):
        make_pairs(tmp_path / 'images' / part, tmp_path / 'annotations' / part, number)
    (tmp_path / 'classes.txt').write_text('\n'.join(NAMES) + '\n')
    return tmp_path


@pytest.fixture
def told(monkeypatch):
    texts = []
    monkeypatch.setattr(
        'eva_mm.segmentation.own_data.print_log', lambda text, *_, **__: texts.append(text)
    )
    return texts


def test_classes_schedule_and_rate(root):
    cfg = fitted(root)
    published = load_config(LEAF, 'mmseg')
    assert cfg.train_cfg.max_iters == 1000  # more than 40 epochs of 6 images by 4
    assert cfg.train_cfg.val_interval == cfg.default_hooks.checkpoint.interval == 100
    assert [s.end for s in cfg.param_scheduler] == [101, 1001]
    rate = published.optim_wrapper.optimizer.lr * math.sqrt(4 / 64)
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(rate)
    assert cfg.auto_scale_lr.base_batch_size == 4
    head = cfg.model.decode_head
    assert (head.num_classes, head.loss_cls.class_weight) == (5, [1.0] * 5 + [0.1])
    for part, number in (('train', 6), ('val', 2), ('test', 2)):
        dataset = dataset_of(cfg, part)
        assert len(dataset) == number
        assert list(dataset.metainfo['classes']) == NAMES
        assert not set(np.unique(dataset[0]['data_samples'].gt_sem_seg.data)) - set(range(5))
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert model.decode_head.cls_embed.weight.shape[0] == 6
    # New class scores learn as fast as anything; the rest is as published.
    rows = {r.name: r for r in param_group_table(build_optim_wrapper(model, cfg.optim_wrapper))}
    assert rows['decode_head.cls_embed.weight'].lr == pytest.approx(rate)
    assert rows['decode_head.query_feat.weight'].lr == pytest.approx(rate * 0.95**41)


def test_rates_are_those_of_warm_up_times_decay(root):
    cfg = fitted(root)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedulers = [
        PARAM_SCHEDULERS.build(dict(s), default_args=dict(optimizer=optimizer))
        for s in cfg.param_scheduler
    ]
    for step in range(1000):
        warm = 1e-6 + (1 - 1e-6) * step / 100 if step < 100 else 1.0
        found = optimizer.param_groups[0]['lr']
        assert math.isclose(found, warm * (1 - step / 1000), rel_tol=1e-8), step
        for scheduler in schedulers:
            scheduler.step()


def test_long_runs_count_epochs(root):
    assert fitted(root, images_per_update=1, **{'own_data.epochs': 200}).train_cfg.max_iters == 1200


@pytest.mark.parametrize(
    ('images', 'labels', 'suffix'),
    [
        ('images/{}', 'labels/{}', '_gt.png'),
        ('img_dir/{}', 'ann_dir/{}', '.png'),
        ('{}/images', '{}/masks', '_mask.png'),
    ],
)
def test_layouts(tmp_path, images, labels, suffix):
    for part, number in (('train', 4), ('val', 3)):
        folders = (tmp_path / name.format(part) for name in (images, labels))
        make_pairs(*folders, number, suffix=suffix, ending='.png')
    cfg = fitted(tmp_path)
    assert [len(dataset_of(cfg, part)) for part in ('train', 'val')] == [4, 3]
    # Without names, each number up to the largest is a class.
    assert cfg.model.decode_head.num_classes == 5
    assert list(dataset_of(cfg, 'val').metainfo['classes'])[4] == 'class 4'


def test_a_folder_without_parts_is_split(tmp_path):
    make_pairs(tmp_path / 'images', tmp_path / 'masks', 20, size=(16, 16))
    cfg = fitted(tmp_path)
    parts = [dataset_of(cfg, part) for part in ('train', 'val')]
    files = [{d.get_data_info(i)['img_path'] for i in range(len(d))} for d in parts]
    assert [len(f) for f in files] == [18, 2]
    assert not files[0] & files[1]
    assert cfg.fitted_length.split is not None
    assert fitted(tmp_path, **{'own_data.split_seed': 1}).fitted_length.split != (
        cfg.fitted_length.split
    )


def test_zero_stands_for_other(tmp_path):
    make_pairs(tmp_path / 'images', tmp_path / 'masks', 4, values=[0, 1, 3, 255])
    cfg = fitted(tmp_path, **{'own_data.reduce_zero_label': True})
    dataset = dataset_of(cfg, 'train')
    assert list(dataset.metainfo['classes']) == ['class 1', 'class 2', 'class 3']
    assert set(np.unique(dataset[0]['data_samples'].gt_sem_seg.data)) == {0, 2, 255}
    cfg = fitted(tmp_path)
    assert cfg.model.decode_head.num_classes == 4


def test_classes_without_pixels_are_told(root, told):
    fitted(root, **{'own_data.classes': [*NAMES, 'moon']})
    assert any('1 of 6 classes are in no training image: moon' in text for text in told)
    assert 'fitted to' in told[-1]
    assert '6 training and 2 validation images; 1,000 iterations of 4 images' in told[-1]


def test_command_line_stays(root):
    changes = {'train_cfg.max_iters': 70, 'optim_wrapper.optimizer.lr': 0.5}
    cfg = fitted(root, kept=set(changes), **changes)
    assert cfg.train_cfg.max_iters == 70
    assert cfg.optim_wrapper.optimizer.lr == 0.5
    assert cfg.param_scheduler[1].end == 71


def test_test_leaves_the_schedule_alone(root):
    cfg = fitted(root, purpose='test')
    assert cfg.train_cfg.max_iters == 20000
    assert cfg.model.decode_head.num_classes == 5


def test_fitted_config_is_left_alone(root, tmp_path):
    cfg = fitted(root)
    before = copy.deepcopy(cfg)
    fit_to_data(cfg, 4)
    assert cfg.to_dict() == before.to_dict()
    with pytest.raises(UsageError, match='own_data.epochs: .* this would do nothing'):
        fit_to_data(cfg, 4, kept={'own_data.epochs'})
    cfg.data_root = str(tmp_path / 'images')
    with pytest.raises(UsageError, match='is fitted to'):
        fit_to_data(cfg, 4)


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ('option', 'value', 'text'),
    [
        ('epochs', 0, 'above 0, but got 0'),
        ('warm_up', -1, '0 or more, but got -1'),
        ('min_iterations', 'x', "1 or more, but got 'x'"),
        ('num_validations', 0, '1 or more, but got 0'),
        ('val_fraction', 1.5, 'a share between 0 and 1, but got 1.5'),
        ('reduce_zero_label', 1, 'True or False, but got 1'),
        ('classes', ['a', 'a'], 'names, each once'),
    ],
)
def test_options_out_of_range(root, option, value, text):
    with pytest.raises(UsageError, match=f'own_data.{option} should be {text}'):
        fitted(root, **{f'own_data.{option}': value})


def test_values_beyond_the_classes_are_told_before_training(root):
    save_pair(
        root / 'images/training/3.jpg', root / 'annotations/training/3.png', values=[0, 5, 77]
    )
    with pytest.raises(InputError, match=r'training/3\.png has the values 5 .*, 77 .*0 to 4'):
        fitted(root)
    (root / 'classes.txt').unlink()
    assert fitted(root).model.decode_head.num_classes == 78


def test_a_test_of_named_classes_reads_no_map_beforehand(root):
    (root / 'annotations/training/3.png').write_bytes(b'no picture')
    (root / 'annotations/validation/1.png').write_bytes(b'no picture')
    cfg = fitted(root, purpose='test')
    assert cfg.test_dataloader.dataset.metainfo.classes == NAMES
    # The data set itself refuses a broken map that it loads.
    with pytest.raises(InputError, match=r'cannot read label map .*validation/1\.png'):
        dataset_of(cfg, 'test')[1]
    for purpose in ('train', 'dry_run'):
        with pytest.raises(InputError, match=r'cannot read label map .*training/3\.png'):
            fitted(root, purpose=purpose)
    (root / 'classes.txt').unlink()  # classes are the numbers in the maps
    with pytest.raises(InputError, match=r'cannot read label map .*training/3\.png'):
        fitted(root, purpose='test')


def test_long_reading_is_told(root, told, monkeypatch):
    monkeypatch.setattr('eva_mm.segmentation.own_data._TELL_EVERY', 0)
    fitted(root)
    assert 'label maps: 1 of 6 looked at' in told
    assert 'label maps: 2 of 2 looked at' in told


def test_folders_that_do_not_fit(root, tmp_path):
    with pytest.raises(UsageError, match='data_root=DIR'):
        fit_to_data(load_config(LEAF, 'mmseg'), 8)
    with pytest.raises(InputError, match='it does not exist'):
        fitted(tmp_path / 'nowhere')
    (root / 'annotations/training/3.png').unlink()
    with pytest.raises(MissingFileError, match=r'1 of 6 images .*: expected .*training/3\.png'):
        fitted(root)
    (root / 'annotations').rename(root / 'other')
    with pytest.raises(MissingFileError, match='training has no label maps beside it'):
        fitted(root)
    named = {'own_data.train_images': 'images/training', 'own_data.train_labels': 'other/train'}
    with pytest.raises(InputError, match=r'train_labels=other/train: no such folder in .*images'):
        fitted(root, **named)
    with pytest.raises(UsageError, match='val_images is given without own_data.val_labels'):
        fitted(root, **{'own_data.val_images': 'images'})
    (tmp_path / 'empty').mkdir()
    with pytest.raises(MissingFileError, match='no folder of images .*, but nothing'):
        fitted(tmp_path / 'empty')


def test_names_that_do_not_belong_together(tmp_path):
    make_pairs(tmp_path / 'images', tmp_path / 'masks', 2)
    for number in range(2):
        (tmp_path / f'masks/{number}.png').rename(tmp_path / f'masks/map{number}.png')
    with pytest.raises(MissingFileError, match=r'no label map is named as an image.*map0\.png'):
        fitted(tmp_path)


def test_names_that_begin_alike(tmp_path):
    """`1` begins `10` as well: the ending that most images find is taken, whatever comes first."""
    make_pairs(tmp_path / 'images', tmp_path / 'masks', 13, suffix='_m.png')
    assert fitted(tmp_path).train_dataloader.dataset.seg_map_suffix == '_m.png'
    (tmp_path / 'masks/1_m.png').unlink()
    with pytest.raises(MissingFileError, match=r'expected .*masks/1_m\.png'):
        fitted(tmp_path)


def test_a_split_is_known_wherever_the_data_lie(tmp_path):
    make_pairs(tmp_path / 'here/images', tmp_path / 'here/masks', 10, size=(8, 8))
    first = fitted(tmp_path / 'here').fitted_length.split
    (tmp_path / 'here').rename(tmp_path / 'there')
    assert fitted(tmp_path / 'there').fitted_length.split == first


def test_nothing_but_ignored(tmp_path):
    make_pairs(tmp_path / 'images', tmp_path / 'masks', 2, values=[255])
    with pytest.raises(InputError, match='hold no class: expected numbers from 0 on'):
        fitted(tmp_path)


def test_one_folder_for_both_parts(root):
    same = {f'own_data.val_{kind}': f'{folder}/training' for kind, folder in (
        ('images', 'images'), ('labels', 'annotations'))}  # fmt: skip
    with pytest.raises(UsageError, match='share images'):
        fitted(root, **same)


def test_a_checkpoint_of_other_classes_or_another_split_is_not_tested(root, tmp_path):
    file = str(tmp_path / 'c.pth')
    torch.save(dict(state_dict={}, meta=dict(dataset_meta=dict(classes=('a', 'b')))), file)
    with pytest.raises(UsageError, match=r'c\.pth was trained on 2 classes \(a, b \.\.\.\)'):
        fitted(root, purpose='test', load_from=file)
    make_pairs(tmp_path / 'flat/images', tmp_path / 'flat/masks', 10, size=(8, 8))
    noted = fitted(tmp_path / 'flat').fitted_length.to_dict()
    torch.save(dict(state_dict={}, meta=dict(fitted_length=noted)), file)
    fitted(tmp_path / 'flat', purpose='test', load_from=file)
    options = {'own_data.split_seed': 4}
    with pytest.raises(UsageError, match='trained on another split'):
        fitted(tmp_path / 'flat', purpose='test', load_from=file, **options)
