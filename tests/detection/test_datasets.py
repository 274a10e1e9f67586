"""COCO and LVIS data lists: what is kept, dropped, named and reported."""

import json
import pickle

import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from mmdet.registry import DATASETS
from PIL import Image

from eva_mm.demo import generate_lvis
from eva_mm.detection.datasets import EVACocoDataset, EVALVISDataset, lvis_image_file
from tests.parity.reference import DEFAULT_DIR


def image(image_id, **more):
    url = f'http://images.cocodataset.org/train2017/{image_id:012d}.jpg'
    return dict(
        id=image_id, file_name=f'{image_id}.jpg', width=64, height=48, coco_url=url,
        neg_category_ids=[], not_exhaustive_category_ids=[], **more,
    )  # fmt: skip


def instance(ann_id, image_id, category_id, bbox=(4, 4, 10, 10), **more):
    x, y, w, h = bbox
    polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
    entry = dict(
        id=ann_id, image_id=image_id, category_id=category_id, bbox=list(bbox), area=w * h,
        segmentation=[polygon], iscrowd=0,
    )  # fmt: skip
    return {**entry, **more}


def make_data():
    """Images listed out of order, category ids out of order and with gaps."""
    crowd = dict(iscrowd=1, segmentation=dict(size=[48, 64], counts=[0, 3072]))
    return dict(
        images=[image(30), image(10), image(20), image(40)],
        categories=[
            dict(id=90, name='last', frequency='f', image_count=300),
            dict(id=2, name='first', frequency='r', image_count=4),
            dict(id=7, name='middle', frequency='c', image_count=20),
        ],
        annotations=[
            instance(1, 10, 90),
            instance(2, 10, 2, bbox=(60, 40, 0.4, 0.5)),  # tiny: stock mmdet drops it
            instance(3, 10, 7, **crowd),
            instance(4, 20, 7, **crowd),  # this image has nothing but a crowd
            instance(5, 30, 7, segmentation=[[1, 1, 2, 2], [3, 3, 9, 3, 9, 9]]),
            instance(6, 30, 7, segmentation=[[1, 1, 2, 2]]),  # no polygon with three points
        ],
    )


def write(tmp_path, data):
    path = tmp_path / 'annotations.json'
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return str(path)


def ids(dataset):
    return [dataset.get_data_info(i)['img_id'] for i in range(len(dataset))]


def test_training_set(tmp_path):
    dataset = EVACocoDataset(ann_file=write(tmp_path, make_data()), data_prefix=dict(img='img'))
    assert ids(dataset) == [10, 30]
    first, second = dataset.get_data_info(0), dataset.get_data_info(1)
    assert first['img_path'] == 'img/10.jpg'
    assert [i['ann_id'] for i in first['instances']] == [1, 2], 'crowds go, tiny boxes stay'
    assert [i['bbox_label'] for i in first['instances']] == [2, 0]
    assert first['instances'][1]['bbox'] == pytest.approx([60, 40, 60.4, 40.5])
    assert [i['ann_id'] for i in second['instances']] == [5]
    assert second['instances'][0]['mask'] == [[3, 3, 9, 3, 9, 9]]
    assert dataset.metainfo['classes'] == ('first', 'middle', 'last')
    assert dataset.cat_ids == [2, 7, 90]
    assert dataset.get_cat_ids(0) == [2, 0]


def test_test_set_keeps_every_image_and_marks_crowds(tmp_path):
    dataset = EVACocoDataset(
        ann_file=write(tmp_path, make_data()), data_prefix=dict(img=''), test_mode=True
    )
    assert ids(dataset) == [10, 20, 30, 40]
    assert [i['ignore_flag'] for i in dataset.get_data_info(0)['instances']] == [0, 0, 1]
    assert dataset.get_data_info(3)['instances'] == []


def test_filter_config(tmp_path):
    data = make_data()
    data['images'][0]['width'] = 8
    path = write(tmp_path, data)
    kept = EVACocoDataset(
        ann_file=path, data_prefix=dict(img=''), filter_cfg=dict(filter_empty_gt=False)
    )
    assert ids(kept) == [10, 20, 30, 40]
    large = EVACocoDataset(ann_file=path, data_prefix=dict(img=''), filter_cfg=dict(min_size=32))
    assert ids(large) == [10]


def test_chosen_classes_follow_category_ids(tmp_path):
    path = write(tmp_path, make_data())
    dataset = EVACocoDataset(
        ann_file=path, data_prefix=dict(img=''), metainfo=dict(classes=('last', 'middle'))
    )
    assert dataset.metainfo['classes'] == ('middle', 'last')
    assert dataset.cat2label == {7: 0, 90: 1}
    assert [i['bbox_label'] for i in dataset.get_data_info(0)['instances']] == [1]
    with pytest.raises(ValueError, match='annotations.json has no category named zebra'):
        EVACocoDataset(
            ann_file=path, data_prefix=dict(img=''), metainfo=dict(classes=('last', 'zebra'))
        )


@pytest.mark.parametrize('serialize', [True, False])
def test_base_dataset_conventions(tmp_path, serialize):
    config = dict(
        type='EVALVISDataset', ann_file='annotations.json', data_root=str(tmp_path),
        data_prefix=dict(img='images'), serialize_data=serialize,
    )  # fmt: skip
    write(tmp_path, make_data())
    lazy = DATASETS.build(dict(config, lazy_init=True))
    assert not lazy._fully_initialized
    lazy.full_init()
    assert ids(lazy) == [10, 30]
    assert ids(DATASETS.build(dict(config, indices=1))) == [10]
    assert ids(DATASETS.build(dict(config, indices=[1]))) == [30]
    assert ids(lazy.get_subset([1, 0])) == [30, 10]
    assert ids(pickle.loads(pickle.dumps(lazy))) == [10, 30]  # spawned workers
    assert lazy.get_data_info(0)['img_path'] == f'{tmp_path}/images/train2017/000000000010.jpg'


def test_lvis_fields(tmp_path):
    data = make_data()
    data['images'][1].update(neg_category_ids=[7], not_exhaustive_category_ids=[90])
    dataset = EVALVISDataset(ann_file=write(tmp_path, data), data_prefix=dict(img=''))
    info = dataset.get_data_info(0)
    assert (info['neg_category_ids'], info['not_exhaustive_category_ids']) == ([7], [90])
    assert dataset.metainfo['image_counts'] == [4, 20, 300]


def test_image_counts_are_counted_without_the_field(tmp_path):
    data = make_data()
    for category in data['categories']:
        del category['image_count']
    data['annotations'].append(instance(7, 10, 90))  # twice in one image counts once
    dataset = EVALVISDataset(ann_file=write(tmp_path, data), data_prefix=dict(img=''))
    assert dataset.metainfo['image_counts'] == [1, 3, 1]


def test_lvis_image_files_of_both_versions():
    v1 = dict(coco_url='http://images.cocodataset.org/train2017/000000391895.jpg')
    v05 = dict(v1, file_name='COCO_val2014_000000391895.jpg')
    assert lvis_image_file(v1) == lvis_image_file(v05) == 'train2017/000000391895.jpg'
    del v05['coco_url']
    assert lvis_image_file(v05) == '000000391895.jpg'
    assert lvis_image_file(dict(file_name='val2017/1_2.jpg')) == 'val2017/1_2.jpg'


def test_real_lvis_v05():
    path = DEFAULT_DIR.parent / 'data' / 'annotations' / 'lvis_val_100.json'
    if not path.exists():
        pytest.skip(f'{path} is absent')
    dataset = EVALVISDataset(ann_file=str(path), data_prefix=dict(img=''), test_mode=True)
    data = json.loads(path.read_text())
    assert len(dataset) == 100
    assert len(dataset.metainfo['classes']) == 1230
    found = sum(len(dataset.get_data_info(i)['instances']) for i in range(100))
    assert found == len(data['annotations']) == 977
    counts = {c['name']: c['image_count'] for c in data['categories']}
    expected = [counts[name] for name in dataset.metainfo['classes']]
    assert dataset.metainfo['image_counts'] == expected


def test_demo_set_loads_with_its_images(tmp_path):
    root = generate_lvis(tmp_path / 'demo', num_train=24, num_val=12, size=96)
    config = dict(data_root=str(root), pipeline=[LoadImageFromFile(imdecode_backend='pillow')])
    lvis = EVALVISDataset(
        ann_file='annotations/lvis_v1_train.json', data_prefix=dict(img=''), **config
    )
    coco = EVACocoDataset(
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017'),
        **config,
    )
    assert lvis[0]['img'].shape == (96, 96, 3)
    assert np.array_equal(lvis[0]['img'], coco[0]['img'])
    assert lvis.metainfo['classes'] == coco.metainfo['classes']
    assert len(lvis.metainfo['image_counts']) >= 24


BAD = {
    'annotation file is empty': ' ',
    'not valid JSON': '{"images": [',
    r'expected an object with images and categories, found a list \(a results file': [],
    "expected a list under 'categories'": dict(images=[]),
    "is not LVIS: images entry id=30 has no 'neg_category_ids'": dict(
        make_data(), images=[dict(id=30, file_name='a.jpg', width=9, height=9)]
    ),
    "is not LVIS: categories entry id=5 has no 'frequency'": dict(
        make_data(), categories=[dict(id=5, name='a')]
    ),
    'annotation id=9 belongs to image 77, which is not listed': dict(
        make_data(), annotations=[instance(9, 77, 2)]
    ),
    'annotations are not unique, id=': dict(
        make_data(), annotations=[instance(9, 10, 2), instance(9, 30, 2)]
    ),
    'categories are not unique, id=5 twice': dict(
        make_data(), categories=[dict(id=5, name=n, frequency='f') for n in 'ab']
    ),
    'none of 4 images is left for training': dict(make_data(), annotations=[]),
}


@pytest.mark.parametrize('message', BAD)
def test_bad_annotation_files_are_named(tmp_path, message):
    path = write(tmp_path, BAD[message])
    with pytest.raises(ValueError, match=message) as error:
        EVALVISDataset(ann_file=path, data_prefix=dict(img=''))
    assert path in str(error.value)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='annotation file not found: .*nowhere.json'):
        EVACocoDataset(ann_file=str(tmp_path / 'nowhere.json'), data_prefix=dict(img=''))
    dataset = EVACocoDataset(
        ann_file=write(tmp_path, make_data()),
        data_prefix=dict(img=str(tmp_path)),
        pipeline=[LoadImageFromFile(imdecode_backend='pillow')],
    )
    with pytest.raises(FileNotFoundError, match=r'cannot read image .*10\.jpg, listed in .*json'):
        dataset[0]
    (tmp_path / '10.jpg').write_bytes(b'no picture')
    with pytest.raises(OSError, match=r'cannot read image .*10\.jpg'):
        dataset[0]


def test_exif_rotation_is_honoured(tmp_path):
    picture = Image.new('RGB', (64, 48), (255, 0, 0))
    exif = picture.getexif()
    exif[0x0112] = 6  # turn by 90 degrees to view
    picture.save(tmp_path / '10.jpg', exif=exif)
    dataset = EVACocoDataset(
        ann_file=write(tmp_path, make_data()),
        data_prefix=dict(img=str(tmp_path)),
        pipeline=[LoadImageFromFile(imdecode_backend='pillow')],
    )
    image_bgr = dataset[0]['img']
    assert image_bgr.shape == (64, 48, 3)
    assert image_bgr[0, 0].argmax() == 2  # BGR: red last
