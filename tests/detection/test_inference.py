"""Detectors on files of one's own: our tool, and mmdet's own ways in."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer, inference_detector, init_detector
from mmdet.datasets import CocoDataset
from mmdet.registry import MODELS
from PIL import Image
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from eva_mm.detection import inference
from eva_mm.detection.inference import (
    COCO_IDS,
    DetectionPredictor,
    decode_masks,
    raise_threshold,
)
from eva_mm.engine.inference import infer
from eva_mm.engine.launch import load_config
from eva_mm.engine.strict_loading import CheckpointMismatchError
from eva_mm.errors import UsageError

from ..helpers import ROOT, shrink_detector
from ..helpers import load_config as leaf

NAMES = ('cat', 'dog', 'bird', '$1 and $2', '鱼')
SIDE = 128


def write_model(folder, name='coco/eva_cascade', meta=None, **options):
    """A tiny detector with decided opinions; returns config and checkpoint."""
    cfg = shrink_detector(leaf(name))
    for step in cfg.test_dataloader.dataset.pipeline:
        if step.type == 'ResizeShortestEdge':
            step.update(scale=SIDE, max_size=SIDE)
    # The data set is not there, as on a machine that a model was copied to.
    cfg.test_dataloader.dataset.data_root = 'nowhere/'
    cfg.merge_from_dict(options)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    state = model.state_dict()
    for key, value in state.items():
        if 'fc_cls.weight' in key or 'conv_logits.weight' in key:
            value.mul_(150)  # initial weights leave every score at 1 / classes
    config, checkpoint = folder / 'tiny.py', folder / 'tiny.pth'
    cfg.dump(config)
    meta = dict(dataset_meta=dict(classes=NAMES)) if meta is None else meta
    torch.save(dict(state_dict=state, meta=meta), checkpoint)
    return str(config), str(checkpoint)


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp('model'))


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """Images of several sizes and kinds, a torn one, and a text."""
    root = tmp_path_factory.mktemp('photos')
    random = np.random.default_rng(0)
    (root / 'more').mkdir()
    for index, (height, width) in enumerate([(90, 120), (130, 60), (64, 64), (30, 30)]):
        image = cv2.resize(random.integers(0, 256, (6, 6, 3), dtype=np.uint8), (width, height))
        cv2.imwrite(str(root / f'{index}.jpg'), image)
    photo = Image.open(root / '0.jpg')
    photo.convert('CMYK').save(root / 'more' / 'cmyk.jpg')
    photo.convert('L').save(root / 'more' / 'gray.png')
    photo.convert('RGBA').save(root / 'more' / 'rgba.png')
    rotated = Image.Exif()
    rotated[274] = 6  # shown a quarter turn clockwise
    photo.save(root / 'more' / 'turned.jpg', exif=rotated)
    (root / 'torn.jpg').write_bytes((root / '1.jpg').read_bytes()[:400])
    (root / 'list.txt').write_text('no image')
    return root


def read(out):
    table = json.loads((out / 'images.json').read_text())
    return table, json.loads((out / 'results.json').read_text())


def test_folder_gives_what_coco_reads(model, photos, tmp_path):
    report = infer(str(photos), ':'.join(model), str(tmp_path), 3, score_thr=0.2)
    table, results = read(tmp_path)
    assert report.status == 3
    assert report.skipped.keys() == {'torn.jpg'}
    assert 'truncated' in report.skipped['torn.jpg'].lower()
    names = {row['file_name']: row for row in table['images']}
    assert len(names) == 8
    assert (names['more/turned.jpg']['width'], names['more/turned.jpg']['height']) == (90, 120)
    assert table['categories'] == [dict(id=i, name=n) for i, n in enumerate(NAMES, 1)]
    assert table['info']['checkpoint'] == model[1]

    coco = COCO(str(tmp_path / 'images.json'))
    loaded = coco.loadRes(str(tmp_path / 'results.json'))
    assert len(loaded.anns) == len(results) == report.results > 20
    for record in loaded.anns.values():
        row = coco.imgs[record['image_id']]
        assert record['file_name'] == row['file_name']
        assert 0.2 < record['score'] <= 1
        assert record['category_id'] in coco.cats
        x, y, width, height = record['bbox']
        assert min(x, y) >= 0
        assert min(width, height) > 0
        assert x + width <= row['width'] + 1e-3
        assert y + height <= row['height'] + 1e-3
        assert loaded.annToMask(record).shape == (row['height'], row['width'])
    for name, row in names.items():
        drawn = cv2.imread(str(tmp_path / 'drawn' / name))
        assert drawn.shape[:2] == (row['height'], row['width'])
    assert (
        cv2.imread(str(tmp_path / 'drawn' / '0.jpg')) != cv2.imread(str(photos / '0.jpg'))
    ).any()


def by_image(results):
    grouped = {}
    for record in results:
        grouped.setdefault(record['file_name'], []).append(record)
    return grouped


def test_batches_change_nothing(model, photos, tmp_path):
    found = []
    for size in (1, 3):
        infer(str(photos), ':'.join(model), str(tmp_path / str(size)), size, False, score_thr=0.2)
        found.append(read(tmp_path / str(size)))
    (table, single), (other, batched) = found
    assert table == other
    assert len(single) == len(batched)
    for one, three in zip(single, batched):
        assert one['file_name'] == three['file_name']
        assert one['category_id'] == three['category_id']
        assert abs(one['score'] - three['score']) < 1e-4
        assert np.allclose(one['bbox'], three['bbox'], atol=1e-2)
        overlap = mask_utils.iou([one['segmentation']], [three['segmentation']], [0])
        assert overlap > 0.99 or mask_utils.area(one['segmentation']) == 0


def test_threshold_and_classes_select_and_change_nothing_else(model, photos, tmp_path):
    """Dropping low scores before NMS must not touch the others."""
    found = []
    for name, options in (
        ('all', dict(score_thr=0.05)),
        ('few', dict(score_thr=0.4)),
        ('dogs', dict(score_thr=0.05, classes=['dog'])),
    ):
        infer(str(photos / '0.jpg'), ':'.join(model), str(tmp_path / name), 1, False, **options)
        found.append(read(tmp_path / name)[1])
    everything, few, dogs = found
    assert 0 < len(few) < len(everything)
    assert few == [record for record in everything if record['score'] > 0.4]
    assert dogs == [record for record in everything if record['category_id'] == 2]
    assert 0 < len(dogs) < len(everything)


def test_video(model, tmp_path):
    random = np.random.default_rng(1)
    video = cv2.VideoWriter(
        str(tmp_path / 'clip.mp4'), cv2.VideoWriter_fourcc(*'mp4v'), 12, (96, 64)
    )
    for _ in range(4):
        video.write(cv2.resize(random.integers(0, 256, (5, 5, 3), dtype=np.uint8), (96, 64)))
    video.release()
    out = tmp_path / 'out'
    report = infer(str(tmp_path / 'clip.mp4'), ':'.join(model), str(out), 3, score_thr=0.2)
    assert (report.images, report.videos, report.status) == (4, 1, 0)
    table, results = read(out)
    assert [row['frame'] for row in table['images']] == [0, 1, 2, 3]
    assert {record['image_id'] for record in results} == {1, 2, 3, 4}
    drawn = cv2.VideoCapture(str(out / 'drawn' / 'clip.mp4'))
    assert drawn.get(cv2.CAP_PROP_FRAME_COUNT) == 4
    assert drawn.get(cv2.CAP_PROP_FPS) == 12
    assert drawn.read()[1].shape == (64, 96, 3)


def test_an_image_without_detections(model, photos, tmp_path):
    report = infer(str(photos / '0.jpg'), ':'.join(model), str(tmp_path), score_thr=0.9999)
    table, results = read(tmp_path)
    assert (report.images, report.results, results) == (1, 0, [])
    drawn = cv2.imread(str(tmp_path / 'drawn' / '0.jpg')).astype(int)
    assert abs(drawn - cv2.imread(str(photos / '0.jpg'))).mean() < 4


def test_a_drawing_is_the_same_each_time(model, photos):
    predictor = DetectionPredictor(load_config(model[0]), model[1], 'cpu', score_thr=0.2)
    image = predictor.load(str(photos / '0.jpg'))
    (prediction,) = predictor.predict([predictor.prepare(image)])
    before = np.random.get_state()[1].copy()
    assert (predictor.draw(image, prediction) == predictor.draw(image, prediction)).all()
    assert (np.random.get_state()[1] == before).all()


def test_many_masks_are_drawn_in_parts_with_the_best_on_top(model, photos, monkeypatch):
    predictor = DetectionPredictor(load_config(model[0]), model[1], 'cpu', score_thr=0.0)
    image = predictor.load(str(photos / '0.jpg'))
    (prediction,) = predictor.predict([predictor.prepare(image)])
    assert len(prediction) > 3
    decoded = []
    monkeypatch.setattr(inference, '_MASKS_AT_ONCE', 3)
    decode = inference.decode_masks
    monkeypatch.setattr(
        inference, 'decode_masks', lambda masks, size: decoded.append(masks) or decode(masks, size)
    )
    drawn = predictor.draw(image, prediction)
    assert drawn.shape == image.shape
    assert max(map(len, decoded)) == 3
    assert sum(map(len, decoded)) == len(prediction)
    assert decoded[-1] == prediction.masks[:3]


def test_large_pictures_are_drawn_smaller(model, photos, tmp_path, monkeypatch):
    monkeypatch.setattr('eva_mm.detection.inference.MAX_DRAWN_SIDE', 60)
    infer(str(photos / '0.jpg'), ':'.join(model), str(tmp_path), score_thr=0.2)
    table, results = read(tmp_path)
    assert (table['images'][0]['height'], table['images'][0]['width']) == (90, 120)
    assert results[0]['segmentation']['size'] == [90, 120]
    assert cv2.imread(str(tmp_path / 'drawn' / '0.jpg')).shape == (45, 60, 3)


def test_masks_are_decoded_at_their_size_or_smaller():
    mask = np.zeros((6, 8), dtype=np.uint8, order='F')
    mask[2:4, 4:] = 1
    runs = mask_utils.encode(mask)
    assert (decode_masks([runs], (6, 8))[0] == mask).all()
    assert decode_masks([runs, runs], (3, 4))[1].tolist() == [
        [False, False, False, False],
        [False, False, True, True],
        [False, False, False, False],
    ]
    assert decode_masks([], (6, 8)).shape == (0, 6, 8)


def test_detectors_that_give_bitmaps(model, photos):
    """As all of mmdet's do; EVA's gives run lengths when it is asked to."""
    predictor = DetectionPredictor(load_config(model[0]), model[1], 'cpu', 0.2, ['cat', 'bird'])
    sample = predictor.prepare(predictor.load(str(photos / '0.jpg')))
    runs = predictor.records(predictor.predict([sample])[0], 1)
    predictor.inferencer.model.roi_head.test_cfg.rle_masks = False
    assert predictor.records(predictor.predict([sample])[0], 1) == runs
    assert len(runs) > 1


def test_detectors_without_masks(photos, tmp_path):
    roi_head = dict(mask_head=None, mask_roi_extractor=None)
    model = write_model(tmp_path, **{'model.roi_head.' + k: v for k, v in roi_head.items()})
    infer(str(photos / '0.jpg'), ':'.join(model), str(tmp_path / 'out'), score_thr=0.2)
    results = read(tmp_path / 'out')[1]
    assert results
    assert all('segmentation' not in record for record in results)
    assert (tmp_path / 'out' / 'drawn' / '0.jpg').is_file()


def test_checkpoints_without_class_names(photos, tmp_path):
    model = write_model(tmp_path, meta={})
    infer(str(photos / '0.jpg'), ':'.join(model), str(tmp_path / 'out'), score_thr=0.2)
    names = [row['name'] for row in read(tmp_path / 'out')[0]['categories']]
    assert names == ['class 1', 'class 2', 'class 3', 'class 4', 'class 5']


def test_category_ids(tmp_path):
    meta = dict(dataset_meta=dict(classes=NAMES, category_ids=[3, 7, 8, 20, 90]))
    model = write_model(tmp_path, meta=meta)
    predictor = DetectionPredictor(load_config(model[0]), model[1], 'cpu')
    assert [row['id'] for row in predictor.categories] == [3, 7, 8, 20, 90]

    info = CocoDataset.METAINFO
    cfg = shrink_detector(leaf('coco/eva_cascade'), num_classes=80)
    torch.save(
        dict(
            state_dict=MODELS.build(cfg.model).state_dict(),
            meta=dict(dataset_meta=dict(info)),
        ),
        tmp_path / 'coco.pth',
    )
    predictor = DetectionPredictor(cfg, str(tmp_path / 'coco.pth'), 'cpu')
    ids = {row['name']: row['id'] for row in predictor.categories}
    assert (ids['person'], ids['stop sign'], ids['toothbrush']) == (1, 13, 90)
    assert len(COCO_IDS) == len(set(COCO_IDS)) == 80


def test_wrong_options(model, tmp_path):
    cfg = load_config(model[0])
    with pytest.raises(UsageError, match="the model knows no 'dgo'; near: dog"):
        DetectionPredictor(cfg, model[1], 'cpu', classes=['cat', 'dgo'])
    with pytest.raises(UsageError, match='--score-thr takes'):
        DetectionPredictor(cfg, model[1], 'cpu', score_thr=1.5)
    cfg.model.roi_head.bbox_head.num_classes = 7
    with pytest.raises(CheckpointMismatchError, match=r'tiny\.pth do not fit'):
        DetectionPredictor(cfg, model[1], 'cpu')


def test_thresholds_are_raised_where_the_detector_reads_them():
    for test_cfg, expected in (
        (dict(rpn=dict(nms_pre=9), rcnn=dict(score_thr=0.05)), 0.3),
        (dict(rcnn=dict(score_thr=0.5)), 0.5),
        (dict(score_thr=0.05), 0.3),
    ):
        raise_threshold(dict(test_cfg=test_cfg), 0.3)
        assert test_cfg.get('rcnn', test_cfg)['score_thr'] == expected
    transformer = dict(max_per_img=300)
    raise_threshold(dict(test_cfg=transformer), 0.3)
    assert transformer == dict(max_per_img=300)


# ------------------------------------------------------------------------------- mmdet's own ways


@pytest.mark.parametrize('name', ['coco/eva_cascade_1536_test', 'lvis/eva_cascade_1536_test'])
def test_init_detector_and_inference_detector(name, photos, tmp_path):
    options = {'model.data_preprocessor.pad_size': (SIDE, SIDE)}
    config, checkpoint = write_model(tmp_path, name, **options)
    model = init_detector(config, checkpoint, device='cpu')
    assert tuple(model.dataset_meta['classes']) == NAMES
    path = str(photos / '0.jpg')
    from_file = inference_detector(model, path).pred_instances
    from_array = inference_detector(model, [cv2.imread(path)])[0].pred_instances
    assert len(from_file) > 0
    assert from_file.masks.shape == (len(from_file), 90, 120)
    # OpenCV and Pillow decode a JPEG alike to a level or two.
    assert abs(float(from_file.scores[0] - from_array.scores[0])) < 0.05


def test_inferencer_of_mmdet(model, photos, tmp_path):
    inferencer = DetInferencer(*model, device='cpu', show_progress=False)
    paths = [str(photos / '0.jpg'), str(photos / 'more' / 'turned.jpg')]
    found = inferencer(
        paths, batch_size=2, out_dir=str(tmp_path), pred_score_thr=0.2, no_save_pred=False
    )
    first, second = found['predictions']
    assert first['masks'][0]['size'] == [90, 120]
    assert second['masks'][0]['size'] == [120, 90]
    assert (tmp_path / 'vis' / '0.jpg').is_file()
    assert len(json.loads((tmp_path / 'preds' / '0.json').read_text())['scores']) > 0

    infer(paths[0], ':'.join(model), str(tmp_path / 'ours'), score_thr=0.0, draw=False)
    ours = read(tmp_path / 'ours')[1]
    assert np.allclose([r['score'] for r in ours], first['scores'], atol=1e-5)
    assert [r['category_id'] - 1 for r in ours] == first['labels']
    assert [r['segmentation']['counts'] for r in ours] == [m['counts'] for m in first['masks']]


def test_in_a_process_that_knows_only_mmdet(model, photos):
    """Neither eva_mm nor its mends are imported by hand: the config brings them."""
    code = f"""
import torch; torch.set_num_threads(1)
from mmdet.apis import DetInferencer
found = DetInferencer({model[0]!r}, {model[1]!r}, device='cpu')({str(photos / '0.jpg')!r})
assert found['predictions'][0]['scores']
"""
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True, capture_output=True)


def test_tool(model, photos, tmp_path):
    tool = [sys.executable, str(ROOT / 'tools' / 'infer.py'), str(photos), '--model']
    options = ['--batch-size', '3', '--score-thr', '0.2', '--device', 'cpu']
    done = subprocess.run(
        [*tool, ':'.join(model), *options, '--classes', 'cat', '鱼'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3, done.stderr
    assert '9/9 images' in done.stderr
    assert 'skipped torn.jpg: ' in done.stderr
    assert '8 images, ' in done.stdout
    assert 'skipped 1:\n  torn.jpg: ' in done.stdout
    table, results = read(tmp_path / 'work_dirs' / 'infer' / photos.name)
    assert {record['category_id'] for record in results} <= {1, 5}
    assert len(table['images']) == 8
