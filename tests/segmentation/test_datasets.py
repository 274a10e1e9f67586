"""Label maps: the same numbers as mmseg's, and what is told of bad ones."""

import copy

import cv2
import numpy as np
import pytest
from mmseg.datasets import ADE20KDataset
from mmseg.registry import DATASETS
from PIL import Image

from eva_mm.engine.unreadable import BrokenImageError, MissingImageError
from eva_mm.errors import InputError, MissingFileError
from eva_mm.segmentation import EVAADE20KDataset, EVACOCOStuffDataset, EVASegmentationFolder
from eva_mm.segmentation.datasets import distinct_colours
from eva_mm.segmentation.transforms import label_table, read_label

from ..helpers import load_config
from .scenes import make_pairs, save_pair

PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]


def prefix(root):
    return dict(img_path=str(root / 'images'), seg_map_path=str(root / 'labels'))


def folder(root, classes=5, **options):
    names = [f'c{i}' for i in range(classes)]
    options = dict(dict(pipeline=PIPELINE, metainfo=dict(classes=names)), **options)
    return EVASegmentationFolder(data_prefix=prefix(root), **options)


def labels_of(dataset):
    return [dataset[i]['data_samples'].gt_sem_seg.data[0].numpy() for i in range(len(dataset))]


@pytest.fixture
def root(tmp_path):
    make_pairs(tmp_path / 'images', tmp_path / 'labels', 4)
    return tmp_path


@pytest.mark.parametrize('classes', [None, ('sky', 'road', 'wall')])
def test_ade20k_reads_as_mmseg(tmp_path, classes):
    """0 and 255 are ignored, 1 is the first; or some classes are chosen, in any order."""
    save_pair(tmp_path / 'images/a.jpg', tmp_path / 'labels/a.png', values=[0, 1, 3, 7, 150, 255])
    options = dict(data_prefix=prefix(tmp_path), pipeline=PIPELINE)
    if classes:
        options['metainfo'] = dict(classes=classes)
    (ours,), (theirs,) = (
        labels_of(kind(**copy.deepcopy(options))) for kind in (EVAADE20KDataset, ADE20KDataset)
    )
    assert np.array_equal(ours, theirs)
    expected = {0, 1, 2, 255} if classes else {0, 2, 6, 149, 255}
    assert set(np.unique(ours)) == expected


def test_coco_stuff_reads_as_mmseg(tmp_path):
    suffix = '_labelTrainIds.png'
    maps = save_pair(
        tmp_path / 'images/a.jpg', tmp_path / f'labels/a{suffix}', values=[0, 5, 170, 255]
    )
    (label,) = labels_of(EVACOCOStuffDataset(data_prefix=prefix(tmp_path), pipeline=PIPELINE))
    assert np.array_equal(label, maps)


# ---------------------------------------------------------------------------------------- bad input


def test_numbers_that_no_class_has(root):
    bad = save_pair(root / 'images/1.jpg', root / 'labels/1.png', values=[0, 4, 5, 9, 255])
    with pytest.raises(InputError) as caught:
        folder(root)[1]
    text = str(caught.value)
    assert f'label map {root}/labels/1.png has the values' in text
    assert f'5 ({(bad == 5).sum()} px), 9 ({(bad == 9).sum()} px)' in text
    assert 'expected 0 to 4, and 255 for ignored' in text


def test_numbers_beyond_ade20k(tmp_path):
    save_pair(tmp_path / 'images/a.jpg', tmp_path / 'labels/a.png', values=[1, 151])
    dataset = EVAADE20KDataset(data_prefix=prefix(tmp_path), pipeline=PIPELINE)
    with pytest.raises(InputError, match=r'a\.png has the values 151 .*expected 0 to 150'):
        dataset[0]


def test_numbers_of_sixteen_bits_are_not_cut(root):
    label = np.zeros((48, 64), np.uint16)
    label[:5] = 256 + 3
    cv2.imwrite(str(root / 'labels/2.png'), label)
    with pytest.raises(InputError, match=r'2\.png has the values 259 \(320 px\)'):
        folder(root)[2]
    label[:5] = 3
    cv2.imwrite(str(root / 'labels/2.png'), label)
    assert set(np.unique(labels_of(folder(root))[2])) == {0, 3}


def test_a_map_of_another_size(root):
    save_pair(root / 'other/1.jpg', root / 'labels/1.png', size=(48, 60))
    expected = r'labels/1\.png is 60 x 48 px, but its image .*images/1\.jpg is 64 x 48 px'
    with pytest.raises(InputError, match=expected):
        folder(root)[1]


def test_a_map_of_colours(root):
    cv2.imwrite(str(root / 'labels/1.png'), np.zeros((48, 64, 3), np.uint8))
    with pytest.raises(InputError, match=r'1\.png has 3 channels: expected one'):
        folder(root)[1]


def test_a_map_of_floats(root):
    Image.fromarray(np.full((48, 64), 1.0, np.float32)).save(root / 'labels/1.tif')
    with pytest.raises(InputError, match=r'labels/1\.tif holds numbers of type float32: expected'):
        read_label(str(root / 'labels/1.tif'))


@pytest.mark.parametrize(('reduce_zero_label', 'most'), [(False, 255), (True, 254)])
def test_more_classes_than_eight_bits_hold(reduce_zero_label, most):
    table = label_table(most, reduce_zero_label)
    assert table[254] == most - 1
    assert table[255] == 255
    with pytest.raises(InputError, match=f'^{most + 1} classes: expected at most {most}, since'):
        label_table(most + 1, reduce_zero_label)


def test_maps_with_a_palette_or_of_one_bit(root):
    label = Image.open(root / 'labels/1.png').convert('P')
    expected = np.array(Image.open(root / 'labels/1.png'))
    label.putdata(expected.ravel().tolist())
    label.putpalette(list(range(256)) * 3)
    label.save(root / 'labels/1.png')
    assert np.array_equal(read_label(str(root / 'labels/1.png')), expected)
    Image.fromarray(expected > 2).save(root / 'labels/1.png')
    assert np.array_equal(labels_of(folder(root))[1], expected > 2)


def test_missing_maps_are_told_before_the_first_image(root):
    for number in (1, 3):
        (root / f'labels/{number}.png').unlink()
    with pytest.raises(MissingFileError) as caught:
        folder(root)
    assert f'2 of 4 images in {root}/images have no label map' in str(caught.value)
    assert f'{root}/labels/1.png, {root}/labels/3.png' in str(caught.value)
    # A set without labels, to be predicted alone.
    assert len(folder(root, pipeline=PIPELINE[::2], test_mode=True)) == 4


def test_missing_folders(root, tmp_path):
    with pytest.raises(MissingFileError, match=r'image folder not found: .*nowhere/images'):
        folder(tmp_path / 'nowhere')
    (root / 'labels').rename(root / 'masks')
    with pytest.raises(MissingFileError, match=r'label map folder not found: .*labels'):
        folder(root)
    with pytest.raises(MissingFileError, match='image folder not found: data/ade'):
        DATASETS.build(load_config('ade20k/eva_mask2former', 'mmseg').train_dataloader.dataset)


@pytest.mark.parametrize('where', ['images/2.jpg', 'labels/2.png'])
def test_broken_files_stop_or_are_replaced(root, where):
    content = (root / where).read_bytes()
    (root / where).write_bytes(content[:60])
    with pytest.raises(BrokenImageError, match=where):
        folder(root)[2]
    dataset = folder(root, skip_unreadable=True)
    assert dataset[2]['data_samples'].img_path.endswith('3.jpg')
    assert dataset.num_replaced == 1
    with pytest.raises(BrokenImageError):
        folder(root, skip_unreadable=True, test_mode=True)[2]


def test_a_missing_image_is_named(root):
    dataset = folder(root)
    (root / 'images/2.jpg').unlink()
    with pytest.raises(MissingImageError, match=r'image not found: .*2\.jpg'):
        dataset[2]


def test_two_opinions_on_zero(root):
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', reduce_zero_label=True),
    ]
    with pytest.raises(InputError, match='is False in the data set and True in LoadAnnotations'):
        folder(root, pipeline=pipeline)[0]


def test_views_of_a_test_are_checked_too(root):
    cfg = load_config('ade20k/eva_mask2former', 'mmseg')
    dataset = folder(root, pipeline=copy.deepcopy(cfg.tta_pipeline), test_mode=True, classes=3)
    with pytest.raises(InputError, match='which no class has'):
        dataset[0]


# ------------------------------------------------------------------------------------------ folders


def test_any_ending_and_deeper_folders(tmp_path):
    save_pair(tmp_path / 'images/x/a.jpg', tmp_path / 'labels/x/a_mask.png')
    save_pair(tmp_path / 'images/b.PNG', tmp_path / 'labels/b_mask.png')
    dataset = folder(tmp_path, seg_map_suffix='_mask.png')
    found = [dataset.get_data_info(i)['seg_map_path'] for i in range(2)]
    assert found == [str(tmp_path / 'labels/b_mask.png'), str(tmp_path / 'labels/x/a_mask.png')]
    assert labels_of(dataset)[1].shape == (48, 64)
    save_pair(tmp_path / 'images/b.bmp', tmp_path / 'labels/c_mask.png')
    with pytest.raises(InputError, match='b.PNG and b.bmp .* the same label map'):
        folder(tmp_path, seg_map_suffix='_mask.png')


def test_holdout_parts_are_disjoint_and_stay(tmp_path):
    make_pairs(tmp_path / 'images', tmp_path / 'labels', 20, size=(8, 8))

    def names(part, seed=0):
        dataset = folder(tmp_path, holdout=dict(part=part, fraction=0.25, seed=seed))
        return [dataset.get_data_info(i)['img_path'] for i in range(len(dataset))]

    train, val = names('train'), names('val')
    assert (len(train), len(val)) == (15, 5)
    assert not set(train) & set(val)
    assert names('val') == val
    assert names('val', seed=1) != val
    make_pairs(tmp_path / 'one/images', tmp_path / 'one/labels', 1)
    with pytest.raises(InputError, match='1 image of .* cannot be split'):
        folder(tmp_path / 'one', holdout=dict(part='val', fraction=0.5))


def test_colours_of_own_classes_are_told_apart(root):
    palette = folder(root, classes=30).metainfo['palette']
    assert palette == distinct_colours(30)
    colours = np.array(palette, float)
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
    assert distances[~np.eye(30, dtype=bool)].min() > 12
    given = [[1, 2, 3]] * 5
    metainfo = dict(classes=list('abcde'), palette=given)
    assert folder(root, metainfo=metainfo).metainfo['palette'] == given
