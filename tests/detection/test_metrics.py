"""LVIS AP against lvis-api, COCO AP against pycocotools, and what surrounds them."""

import copy
import json

import numpy as np
import pytest
import torch
from mmdet.registry import METRICS
from mmengine.logging import MMLogger
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from eva_mm.demo import generate_lvis
from eva_mm.detection import fast_eval
from eva_mm.detection.metrics import EVACocoMetric, EVALVISMetric
from tests.parity.reference import DEFAULT_DIR

REAL = DEFAULT_DIR.parent / 'data' / 'annotations'
LVIS_KEYS = ('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl', 'APr', 'APc', 'APf')


@pytest.fixture(scope='session')
def demo(tmp_path_factory):
    return generate_lvis(tmp_path_factory.mktemp('demo'), num_train=40, num_val=24, size=128)


@pytest.fixture
def lvis_api(monkeypatch):
    # lvis 0.5.3 accumulates in np.float, which numpy 1.24 removed.
    monkeypatch.setattr(np, 'float', float, raising=False)
    return pytest.importorskip('lvis')


def real(name):
    path = REAL / name
    if not path.exists():
        pytest.skip(f'{path} is absent')
    return path


def rle(polygons, image):
    parts = mask_utils.frPyObjects(polygons, image['height'], image['width'])
    encoded = mask_utils.merge(parts)
    return dict(size=encoded['size'], counts=encoded['counts'].decode())


def shifted(annotation, image, rng):
    """The annotation moved and grown a little, its box beside its mask."""
    x, y, w, h = annotation['bbox']
    move = rng.normal(0, 0.12, 2) * (w, h)
    grow = 1 + rng.normal(0, 0.12)
    polygons = annotation['segmentation']
    if isinstance(polygons, dict):
        polygons = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    moved = [(np.reshape(part, (-1, 2)) * grow + move).ravel().tolist() for part in polygons]
    # A box larger than its mask: areas differ, so taking the wrong one for a size shows.
    box = [x * grow + move[0], y * grow + move[1], 1.3 * w * grow, 1.2 * h * grow]
    return dict(bbox=box, segmentation=rle(moved, image))


def anywhere(image, rng):
    w, h = rng.uniform(4, 0.6 * image['width']), rng.uniform(4, 0.6 * image['height'])
    x, y = rng.uniform(0, image['width'] - w), rng.uniform(0, image['height'] - h)
    polygon = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    return dict(bbox=[x, y, w, h], segmentation=rle(polygon, image))


def made_detections(data, seed=0, crowded=2, crowd_size=1100):
    """Detections with true, misplaced and invented ones, and many equal scores.

    Categories are right, listed as absent, not exhaustive, or unlisted in the image. The first
    ``crowded`` images get ``crowd_size`` detections, others at least 25 or none at all.
    """
    rng = np.random.default_rng(seed)
    cat_ids = [category['id'] for category in data['categories']]
    by_image = {image['id']: [] for image in data['images']}
    for annotation in data['annotations']:
        by_image[annotation['image_id']].append(annotation)
    detections = []
    for index, image in enumerate(data['images']):
        truth = by_image[image['id']]
        if index % 7 == 3:
            continue
        found = []
        for annotation in truth:
            for _ in range(rng.integers(0, 4)):
                found.append(
                    dict(shifted(annotation, image, rng), cat=annotation['category_id'], low=0.3)
                )
        listed = [
            *image.get('neg_category_ids', []),
            *image.get('not_exhaustive_category_ids', []),
            *(annotation['category_id'] for annotation in truth),
        ]
        while len(found) < (crowd_size if index < crowded else 25):
            pool = listed if listed and rng.random() < 0.6 else cat_ids
            found.append(dict(anywhere(image, rng), cat=int(rng.choice(pool)), low=0.01))
        for one in found:
            detections.append(
                dict(
                    image_id=image['id'],
                    category_id=one['cat'],
                    score=round(float(rng.uniform(one['low'], one['low'] + 0.7)), 2),
                    bbox=one['bbox'],
                    segmentation=one['segmentation'],
                )
            )
    rng.shuffle(detections)
    return detections


def lvis_reference(api, path, detections, iou_type, max_dets):
    detections = copy.deepcopy(detections)
    if iou_type == 'segm':  # as detectron2's evaluator does, or areas would be box areas
        for detection in detections:
            del detection['bbox']
    truth = api.LVIS(str(path))
    evaluator = api.LVISEval(truth, api.LVISResults(truth, detections, max_dets), iou_type)
    evaluator.run()
    return {f'lvis/{iou_type}_{key}': evaluator.get_results()[key] for key in LVIS_KEYS}


def check_against_lvis_api(api, path, detections, tmp_path, caps=(20, 300, 1000)):
    results = tmp_path / 'results.json'
    results.write_text(json.dumps(detections))
    seen = []
    for max_dets in caps:
        metric = EVALVISMetric(str(path), metric=['bbox', 'segm'], max_dets=max_dets)
        found = metric.evaluate_results_file(str(results))
        for iou_type in ('bbox', 'segm'):
            expected = lvis_reference(api, path, detections, iou_type, max_dets)
            assert expected == pytest.approx({k: found[k] for k in expected}, abs=1e-4)
            assert 0.02 < expected[f'lvis/{iou_type}_AP'] < 0.98
            seen.append(expected)
    return seen


def test_lvis_on_demo_set(lvis_api, demo, tmp_path):
    path = demo / 'annotations' / 'lvis_v1_val.json'
    detections = made_detections(json.loads(path.read_text()))
    seen = check_against_lvis_api(lvis_api, path, detections, tmp_path)
    assert seen[0] != pytest.approx(seen[2], abs=1e-3), 'the cap of 20 must matter'
    assert seen[2] != pytest.approx(seen[4], abs=1e-6), 'the cap of 300 must matter'


@pytest.mark.slow
def test_lvis_on_real_annotations(lvis_api, tmp_path):
    path = real('lvis_val_100.json')
    detections = made_detections(json.loads(path.read_text()))
    seen = check_against_lvis_api(lvis_api, path, detections, tmp_path)
    assert seen[0] != pytest.approx(seen[2], abs=1e-3)


def tiny_lvis(**changes):
    """Two categories (ids with a gap), three images, the last without ground truth."""

    def box(ann_id, image_id, category_id, x, **more):
        corners = [x, 10, x + 40, 10, x + 40, 50, x, 50]
        return dict(
            id=ann_id, image_id=image_id, category_id=category_id, bbox=[x, 10, 40, 40],
            area=1600, segmentation=[corners], **more,
        )  # fmt: skip

    def image(image_id, neg, partly):
        return dict(
            id=image_id, width=200, height=100, file_name=f'{image_id}.jpg',
            coco_url=f'http://images.cocodataset.org/val2017/{image_id}.jpg',
            neg_category_ids=neg, not_exhaustive_category_ids=partly,
        )  # fmt: skip

    data = dict(
        images=[image(11, [], [7]), image(5, [3], []), image(8, [7], [])],
        categories=[
            dict(id=7, name='seven', frequency='r', image_count=1),
            dict(id=3, name='three', frequency='f', image_count=200),
        ],
        annotations=[box(1, 11, 7, 10), box(2, 11, 3, 100), box(3, 5, 7, 60)],
    )
    data.update(changes)
    return data


def detection(image_id, category_id, x, score, size=40):
    corners = [x, 10, x + size, 10, x + size, 10 + size, x, 10 + size]
    image = dict(height=100, width=200)
    return dict(
        image_id=image_id, category_id=category_id, score=score, bbox=[x, 10, size, size],
        segmentation=rle([corners], image),
    )  # fmt: skip


EMPTY = dict(size=[100, 200], counts='Pac0')
TRAPS = {
    'absent category is a false positive': [detection(5, 3, 20, 0.95), detection(11, 3, 100, 0.5)],
    'false positive without ground truth': [detection(8, 7, 20, 0.95), detection(11, 7, 10, 0.9)],
    'unlisted category is left out': [detection(8, 3, 20, 0.95), detection(11, 3, 100, 0.5)],
    'not exhaustive': [detection(11, 7, 120, 0.95), detection(11, 7, 10, 0.5)],
    'equal scores': [
        detection(5, 7, 120, 0.5), detection(5, 7, 60, 0.5), detection(11, 7, 10, 0.5),
    ],
    'no area at all': [
        dict(detection(11, 3, 150, 0.95, size=0), segmentation=EMPTY),
        detection(11, 3, 100, 0.5), detection(5, 7, 60, 0.4),
    ],
    'small mask, large truth': [detection(11, 7, 10, 0.9, size=31), detection(5, 7, 60, 0.8)],
}  # fmt: skip


@pytest.mark.parametrize('name', TRAPS)
@pytest.mark.parametrize('flag', [None, 'ignore', 'iscrowd', 'no area'])
def test_lvis_rules(lvis_api, tmp_path, name, flag):
    data = tiny_lvis()
    if flag == 'no area':
        data['annotations'][0]['area'] = 0
    elif flag:  # lvis-api honours `ignore` and knows no crowds
        data['annotations'][0][flag] = 1
    path, results = tmp_path / 'lvis.json', tmp_path / 'results.json'
    path.write_text(json.dumps(data))
    results.write_text(json.dumps(TRAPS[name]))
    found = EVALVISMetric(str(path), metric=['bbox', 'segm']).evaluate_results_file(str(results))
    for iou_type in ('bbox', 'segm'):
        expected = lvis_reference(lvis_api, path, TRAPS[name], iou_type, 300)
        assert {k: found[k] for k in expected} == pytest.approx(expected, abs=1e-6)


def test_groups_of_categories_do_not_change_the_result(demo, tmp_path, monkeypatch):
    path = demo / 'annotations' / 'lvis_v1_val.json'
    results = tmp_path / 'results.json'
    results.write_text(json.dumps(made_detections(json.loads(path.read_text()), crowded=0)))
    metric = EVALVISMetric(str(path), metric='bbox')
    whole = metric.evaluate_results_file(str(results))
    for size in (1, 5, 1000):
        monkeypatch.setattr(fast_eval, 'CATEGORIES_AT_ONCE', size)
        assert metric.evaluate_results_file(str(results)) == whole


def coco_reference(path, detections, iou_type):
    detections = copy.deepcopy(detections)
    if iou_type == 'segm':
        for one in detections:
            one.pop('bbox', None)
    truth = COCO(str(path))
    evaluator = COCOeval(truth, truth.loadRes(detections), iou_type)
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    names = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')
    return {f'coco/{iou_type}_{name}': evaluator.stats[i] for i, name in enumerate(names)}


@pytest.mark.parametrize('iou_type', ['bbox', 'segm'])
def test_coco_on_real_results(iou_type):
    path, results = real('coco_val2014_100.json'), real(f'coco_fake{iou_type}100_results.json')
    found = EVACocoMetric(str(path), metric=iou_type).evaluate_results_file(str(results))
    expected = coco_reference(path, json.loads(results.read_text()), iou_type)
    assert found == pytest.approx(expected, abs=1e-4)
    assert expected[f'coco/{iou_type}_mAP'] > 0.3


def test_coco_with_crowds_gaps_and_over_the_cap(tmp_path):
    path = real('coco_val2014_100.json')
    data = json.loads(path.read_text())
    assert any(annotation['iscrowd'] for annotation in data['annotations'])
    detections = made_detections(data, crowded=3)
    for one in detections[::3]:  # more than 100 of one class in an image
        one['category_id'] = 1
    results = tmp_path / 'results.json'
    results.write_text(json.dumps(detections))
    metric = EVACocoMetric(str(path), metric=['bbox', 'segm'])
    found = metric.evaluate_results_file(str(results))
    expected = {
        **coco_reference(path, detections, 'bbox'),
        **coco_reference(path, detections, 'segm'),
    }
    assert found == pytest.approx(expected, abs=1e-4)


def samples_of(data, detections, masks):
    """What a model would hand to the metric: mmdet's prediction per image."""
    labels = {i: n for n, i in enumerate(sorted(c['id'] for c in data['categories']))}
    for image in data['images']:
        mine = [one for one in detections if one['image_id'] == image['id']]
        boxes = torch.tensor([one['bbox'] for one in mine], dtype=torch.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        predicted = dict(
            bboxes=boxes,
            scores=torch.tensor([one['score'] for one in mine], dtype=torch.float64),
            labels=torch.tensor([labels[one['category_id']] for one in mine], dtype=torch.long),
        )
        encoded = [one['segmentation'] for one in mine]
        if masks == 'tensor':
            shape = (0, image['height'], image['width'])
            maps = [mask_utils.decode(one) for one in encoded]
            predicted['masks'] = torch.tensor(np.stack(maps) if maps else np.zeros(shape)).bool()
        elif masks == 'rle':
            predicted['masks'] = [dict(e, counts=e['counts'].encode()) for e in encoded]
        yield dict(
            img_id=image['id'],
            ori_shape=(image['height'], image['width']),
            pred_instances=predicted,
        )


@pytest.mark.parametrize('masks', ['tensor', 'rle'])
def test_predictions_and_their_file_agree(demo, tmp_path, masks):
    path = demo / 'annotations' / 'lvis_v1_val.json'
    data = json.loads(path.read_text())
    detections = made_detections(data, crowded=0)
    config = dict(type='EVALVISMetric', ann_file=str(path), metric=['bbox', 'segm'])
    metric = METRICS.build(dict(config, outfile_prefix=str(tmp_path / 'deep' / 'out')))
    metric.dataset_meta = dict(classes=[c['name'] for c in data['categories']])
    samples = list(samples_of(data, detections, masks))
    metric.process({}, samples)
    values = metric.evaluate(len(samples))

    made = tmp_path / 'made.json'
    made.write_text(json.dumps(detections))
    again = METRICS.build(config)
    assert values == pytest.approx(again.evaluate_results_file(str(made)), abs=1e-9)
    written = tmp_path / 'deep' / 'out.json'
    assert values == pytest.approx(again.evaluate_results_file(str(written)), abs=1e-9)
    assert len(json.loads(written.read_text())) == len(detections)
    assert [file.name for file in written.parent.iterdir()] == ['out.json']


@pytest.mark.parametrize('max_dets', [20, 300])
def test_what_cannot_count_is_not_gathered(demo, tmp_path, max_dets):
    """Cut before masks are encoded and gathered: the result is the same, ties included."""
    path = demo / 'annotations' / 'lvis_v1_val.json'
    data = json.loads(path.read_text())
    detections = made_detections(data, crowded=1, crowd_size=330)
    metric = EVALVISMetric(str(path), metric=['bbox', 'segm'], max_dets=max_dets)
    metric.dataset_meta = dict(classes=[c['name'] for c in data['categories']])
    samples = list(samples_of(data, detections, 'rle'))
    metric.process({}, samples)
    gathered = sum(len(prediction['scores']) for _, prediction in metric.results)
    assert gathered == sum(len(prediction['masks']) for _, prediction in metric.results)
    assert gathered < len(detections)
    assert max(len(prediction['scores']) for _, prediction in metric.results) <= max_dets
    made = tmp_path / 'made.json'
    made.write_text(json.dumps(detections))
    assert metric.evaluate(len(samples)) == pytest.approx(
        metric.evaluate_results_file(str(made)), abs=1e-12
    )


def test_format_only_writes_and_evaluates_nothing(tmp_path):
    data = tiny_lvis()
    path = tmp_path / 'lvis.json'
    path.write_text(json.dumps(data))
    metric = EVACocoMetric(
        str(path), format_only=True, outfile_prefix=str(tmp_path / 'out'), prefix='mine'
    )
    metric.dataset_meta = dict(classes=('three', 'seven'))
    samples = list(samples_of(data, TRAPS['equal scores'], None))
    metric.process({}, samples)
    assert metric.evaluate(len(samples)) == {}
    records = json.loads((tmp_path / 'out.json').read_text())
    assert [record['image_id'] for record in records] == [11, 5, 5]
    assert records[0]['category_id'] == 7
    assert records[0]['bbox'] == [10, 10, 40, 40]


def test_masks_keep_their_own_scores(tmp_path):
    data = tiny_lvis()
    for annotation in data['annotations']:
        annotation['iscrowd'] = 0  # pycocotools wants it
    path = tmp_path / 'lvis.json'
    path.write_text(json.dumps(data))
    detections = [detection(5, 7, 60, 0.9), detection(5, 7, 120, 0.8), detection(11, 7, 10, 0.7)]
    metric = EVACocoMetric(str(path), metric=['bbox', 'segm'])
    metric.dataset_meta = dict(classes=('three', 'seven'))
    samples = list(samples_of(data, detections, 'rle'))
    for sample, scores in zip(samples, ([0.7], [0.1, 0.8], [])):
        sample['pred_instances']['mask_scores'] = torch.tensor(scores)
    metric.process({}, samples)
    values = metric.evaluate(3)
    rescored = [dict(one, score=s) for one, s in zip(detections, (0.1, 0.8, 0.7))]
    assert values['coco/bbox_mAP'] == pytest.approx(
        coco_reference(path, detections, 'bbox')['coco/bbox_mAP'], abs=1e-6
    )
    assert values['coco/segm_mAP'] == pytest.approx(
        coco_reference(path, rescored, 'segm')['coco/segm_mAP'], abs=1e-6
    )
    assert values['coco/segm_mAP'] < values['coco/bbox_mAP']


def test_ground_truth_from_the_samples():
    metric = EVACocoMetric(metric='bbox')
    metric.dataset_meta = dict(classes=('a', 'b'))
    instances = [dict(bbox=[10, 10, 50, 50], bbox_label=1, ignore_flag=0)]
    predicted = dict(
        bboxes=torch.tensor([[10.0, 10, 50, 50]]),
        scores=torch.tensor([0.9]),
        labels=torch.tensor([1]),
    )
    metric.process(
        {},
        [dict(img_id=4, ori_shape=(100, 100), pred_instances=predicted, instances=instances)],
    )
    assert metric.evaluate(1)['coco/bbox_mAP'] == pytest.approx(1)


def test_classes_map_to_ascending_category_ids(tmp_path):
    """tiny_lvis lists category 7 before 3, a subset of classes leaves a gap."""
    path = tmp_path / 'lvis.json'
    path.write_text(json.dumps(tiny_lvis()))
    metric = EVALVISMetric(str(path))
    assert metric._category_ids(metric.data) == [3, 7]
    metric.dataset_meta = dict(classes=('seven',))
    assert metric._category_ids(metric.data) == [7]
    metric.dataset_meta = dict(classes=('eight',))
    with pytest.raises(ValueError, match="no category named .'eight'"):
        metric._category_ids(metric.data)


def test_nothing_detected_is_zero_not_an_error(tmp_path):
    path, results = tmp_path / 'lvis.json', tmp_path / 'results.json'
    path.write_text(json.dumps(tiny_lvis()))
    results.write_text('[]')
    values = EVALVISMetric(str(path), metric=['bbox', 'segm']).evaluate_results_file(str(results))
    assert values['lvis/bbox_AP'] == values['lvis/segm_APr'] == 0
    assert values['lvis/bbox_APc'] == -1  # no common category


def test_classwise_and_printed_table(tmp_path, monkeypatch):
    path, results = tmp_path / 'lvis.json', tmp_path / 'results.json'
    path.write_text(json.dumps(tiny_lvis()))
    results.write_text(json.dumps([detection(11, 3, 100, 0.5)]))
    printed = []
    monkeypatch.setattr(
        MMLogger.get_current_instance(), 'info', lambda text, *_: printed.append(text)
    )
    values = EVALVISMetric(str(path), classwise=True).evaluate_results_file(str(results))
    assert values['lvis/bbox_AP/three'] == pytest.approx(1)
    assert values['lvis/bbox_AP/seven'] == 0
    assert values['lvis/bbox_AP'] == pytest.approx(0.5)
    assert any('APf' in text and '100.00' in text for text in printed)


BAD_RESULTS = {
    'expected a list': dict(images=[]),
    r'1 image_id not in the annotations: \[99\]': [detection(99, 3, 0, 0.5)],
    r'1 category_id not in the annotations: \[4\]': [detection(5, 4, 0, 0.5)],
    r'record 1: expected image_id, category_id, score': [
        detection(5, 3, 0, 0.5),
        dict(image_id=5, category_id=3, bbox=[0, 0, 1, 1]),
    ],
    'score must be a finite number': [detection(5, 3, 0, float('nan'))],
    r'mask is \[10, 20\].*image 5 is \[100, 200\]': [
        dict(detection(5, 3, 0, 0.5), segmentation=dict(size=[10, 20], counts='d4'))
    ],
    'run lengths should sum to 20000 pixels': [
        dict(detection(5, 3, 0, 0.5), segmentation=dict(size=[100, 200], counts=[7]))
    ],
    'run lengths cannot be 7': [
        dict(detection(5, 3, 0, 0.5), segmentation=dict(size=[100, 200], counts=7))
    ],
    'must be RLE': [dict(detection(5, 3, 0, 0.5), segmentation=[[0, 0, 1, 1, 1, 0]])],
    'record 1 has no segmentation': [
        detection(5, 3, 0, 0.5),
        dict(image_id=5, category_id=3, score=1, bbox=[0, 0, 1, 1]),
    ],
}


@pytest.mark.parametrize('message', BAD_RESULTS)
def test_bad_results_are_named(tmp_path, message):
    path, results = tmp_path / 'lvis.json', tmp_path / 'results.json'
    path.write_text(json.dumps(tiny_lvis()))
    results.write_text(json.dumps(BAD_RESULTS[message]))
    with pytest.raises(ValueError, match=message):
        EVALVISMetric(str(path)).evaluate_results_file(str(results))


def test_results_without_masks_leave_segm_out(tmp_path):
    path, results = tmp_path / 'lvis.json', tmp_path / 'results.json'
    path.write_text(json.dumps(tiny_lvis()))
    one = detection(11, 3, 100, 0.5)
    del one['segmentation']
    results.write_text(json.dumps([one]))
    values = EVALVISMetric(str(path), metric=['bbox', 'segm']).evaluate_results_file(str(results))
    assert {key.split('_')[0] for key in values} == {'lvis/bbox'}
    with pytest.raises(ValueError, match='nothing to evaluate'):
        EVALVISMetric(str(path), metric='segm').evaluate_results_file(str(results))


def test_names_resolve_to_ours():
    """Some distributions of mmdet ship a EVACocoMetric of their own."""
    assert METRICS.get('EVACocoMetric') is EVACocoMetric
    assert METRICS.get('EVALVISMetric') is EVALVISMetric


def test_bad_arguments_are_named(tmp_path):
    path = tmp_path / 'coco.json'
    data = tiny_lvis()
    del data['images'][1]['neg_category_ids']
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="not LVIS: images entry id=5 has no 'neg_category_ids'"):
        EVALVISMetric(str(path))
    with pytest.raises(ValueError, match='metric should be'):
        EVACocoMetric(str(path), metric='proposal')
    with pytest.raises(ValueError, match='max_dets'):
        EVACocoMetric(str(path), max_dets=0)
    with pytest.raises(ValueError, match='outfile_prefix is needed'):
        EVACocoMetric(str(path), format_only=True)
    with pytest.raises(FileNotFoundError, match='missing.json'):
        EVACocoMetric(str(tmp_path / 'missing.json'))


@pytest.mark.parametrize('number', [lambda i: i, lambda i: f'im{i}'], ids=['from 0', 'texts'])
@pytest.mark.parametrize('lvis', [False, True])
def test_ids_may_begin_with_0_and_be_texts(number, lvis, tmp_path):
    """Roboflow counts from 0, which pycocotools takes for unmatched; others write file names."""
    box = [4, 4, 20, 20]
    extra = dict(neg_category_ids=[], not_exhaustive_category_ids=[]) if lvis else {}
    data = dict(
        images=[dict(id=number(i), width=64, height=64, **extra) for i in range(2)],
        annotations=[
            dict(id=i, image_id=number(i), category_id=0, bbox=box, area=400, iscrowd=0)
            for i in range(2)
        ],
        categories=[dict(id=0, name='cat', frequency='f')],
    )
    found = [dict(image_id=number(i), category_id=0, bbox=box, score=0.9) for i in range(2)]
    paths = []
    for name, content in (('truth', data), ('found', found)):
        paths.append(tmp_path / f'{name}.json')
        paths[-1].write_text(json.dumps(content))
    metric = (EVALVISMetric if lvis else EVACocoMetric)(ann_file=str(paths[0]), metric='bbox')
    values = metric.evaluate_results_file(str(paths[1]))
    assert values['lvis/bbox_AP' if lvis else 'coco/bbox_mAP'] == pytest.approx(1.0)
