"""The demo data set, checked from its files alone with pycocotools and OpenCV."""

import hashlib
import json
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from eva_mm.demo.generate import generate_lvis

ROOT = Path(__file__).parents[2]
SPLITS = ('train', 'val')
# Hue intervals of OpenCV (0-179) of the plain categories, read off the colour's name.
HUES = {'red': (170, 8), 'blue': (105, 120), 'green': (50, 70), 'yellow': (20, 34),
        'purple': (125, 145), 'orange': (6, 20), 'cyan': (84, 100), 'pink': (155, 172)}  # fmt: skip


def by_image(annotations: list) -> dict:
    groups = defaultdict(list)
    for annotation in annotations:
        groups[annotation['image_id']].append(annotation)
    return groups


def rasterise(segmentation, image: dict) -> np.ndarray:
    runs = coco_mask.frPyObjects(segmentation, image['height'], image['width'])
    runs = coco_mask.merge(runs) if isinstance(runs, list) else runs
    return coco_mask.decode(runs).astype(bool)


def read_image(root: Path, image: dict) -> np.ndarray:
    path = root / image['coco_url'].removeprefix('http://images.cocodataset.org/')
    return cv2.imread(str(path))


def tree_digest(root: Path) -> dict:
    return {
        p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in root.rglob('*')
        if p.is_file()
    }


def grow(mask: np.ndarray, pixels: int) -> np.ndarray:
    kernel = np.ones((2 * abs(pixels) + 1,) * 2, np.uint8)
    change = cv2.dilate if pixels > 0 else cv2.erode
    return change(mask.astype(np.uint8), kernel).astype(bool)


def has_hue(image: np.ndarray, colour: str) -> np.ndarray:
    hue, saturation, _ = np.moveaxis(cv2.cvtColor(image, cv2.COLOR_BGR2HSV), -1, 0)
    low, high = HUES[colour]
    inside = (hue >= low) & (hue <= high) if low < high else (hue >= low) | (hue <= high)
    return inside & (saturation > 100)


@pytest.mark.parametrize('split', SPLITS)
def test_fields_are_those_of_lvis_v1(demo_files, split):
    data = demo_files[f'lvis_v1_{split}']
    assert set(data) == {'info', 'licenses', 'images', 'annotations', 'categories'}
    assert {frozenset(image) for image in data['images']} == {
        frozenset(
            ('id', 'height', 'width', 'coco_url', 'flickr_url', 'date_captured', 'license',
             'neg_category_ids', 'not_exhaustive_category_ids')
        )
    }  # fmt: skip
    assert {frozenset(a) for a in data['annotations']} == {
        frozenset(('id', 'image_id', 'category_id', 'bbox', 'area', 'segmentation'))
    }
    assert {frozenset(c) for c in data['categories']} == {
        frozenset(('id', 'name', 'synset', 'synonyms', 'def', 'image_count', 'instance_count',
                   'frequency'))
    }  # fmt: skip
    names = [c['name'] for c in data['categories']]
    assert [c['id'] for c in data['categories']] == list(range(1, len(names) + 1))
    assert names == sorted(set(names))
    assert len(names) >= 24


def test_frequency_groups_follow_the_training_image_counts(demo_files):
    train, val = demo_files['lvis_v1_train'], demo_files['lvis_v1_val']
    images, instances = defaultdict(set), Counter()
    for annotation in train['annotations']:
        images[annotation['category_id']].add(annotation['image_id'])
        instances[annotation['category_id']] += 1
    groups = Counter()
    for category in train['categories']:
        count = len(images[category['id']])
        expected = 'r' if 1 <= count <= 10 else 'c' if 11 <= count <= 100 else 'f'
        assert count >= 1
        assert category['image_count'] == count
        assert category['instance_count'] == instances[category['id']]
        assert category['frequency'] == expected
        groups[expected] += 1
    assert min(groups[g] for g in 'rcf') >= 6
    assert val['categories'] == train['categories']


def test_every_category_has_instances_in_val(demo_files):
    val = demo_files['lvis_v1_val']
    counts = Counter(a['category_id'] for a in val['annotations'])
    assert min(counts[c['id']] for c in val['categories']) >= 8


@pytest.mark.parametrize('kind', ['lvis_v1_{}', 'instances_{}2017'])
def test_polygons_boxes_and_areas_agree(demo_files, kind):
    errors = []
    for split in SPLITS:
        data = demo_files[kind.format(split)]
        images = {image['id']: image for image in data['images']}
        for annotation in data['annotations']:
            mask = rasterise(annotation['segmentation'], images[annotation['image_id']])
            assert mask.sum() == pytest.approx(annotation['area'], rel=0.05, abs=8)
            x, y, width, height = coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask)))
            bx, by, bw, bh = annotation['bbox']
            found, told = (x, y, x + width, y + height), (bx, by, bx + bw, by + bh)
            errors.append(np.abs(np.subtract(told, found)))
            assert min(bx, by) >= 0
            assert min(bw, bh) > 3
            assert bx + bw <= 256
            assert by + bh <= 256
            assert annotation['area'] >= 150  # nothing nearly invisible
            assert all(len(part) >= 6 for part in annotation['segmentation'])
    # Pixels round off sharp tips by up to about 2.5 pixels; nearly all sides agree to one.
    assert np.max(errors) < 3
    assert np.mean(np.array(errors) > 1) < 0.03


def test_visible_parts_do_not_overlap_and_some_are_cut_in_pieces(demo_files):
    data = demo_files['instances_train2017']
    images = {image['id']: image for image in data['images']}
    pieces = Counter()
    for image_id, annotations in by_image(data['annotations']).items():
        masks = [rasterise(a['segmentation'], images[image_id]) for a in annotations]
        covered = np.sum(masks, axis=0)
        borders = sum(cv2.arcLength(np.float32(part).reshape(-1, 2), True)
                      for a in annotations for part in a['segmentation'])  # fmt: skip
        # Two masks may share no more than the pixels that their common outline runs through.
        assert (covered > 1).sum() < 0.25 * borders
        for annotation, mask in zip(annotations, masks):
            parts = len(annotation['segmentation'])
            components = cv2.connectedComponents(mask.astype(np.uint8))[0] - 1
            assert 1 <= components <= parts + 1  # a thin neck may fall between pixels
            pieces[components] += 1
    assert pieces[1] > 500
    assert sum(pieces[n] for n in pieces if n > 1) >= 30


def test_polygons_show_their_category_in_the_picture(demo_root, demo_files):
    """Inside an eroded visible polygon every pixel has the colour the category's name tells."""
    data = demo_files['instances_val2017']
    images = {image['id']: image for image in data['images']}
    names = {c['id']: c['name'].split('_') for c in data['categories']}
    checked = Counter()
    for annotation in data['annotations']:
        words = names[annotation['category_id']]
        if len(words) > 2 or words[0] not in HUES:
            continue
        image = images[annotation['image_id']]
        mask = grow(rasterise(annotation['segmentation'], image), -2)
        assert has_hue(read_image(demo_root, image), words[0])[mask].mean() > 0.97
        checked[words[0]] += 1
    assert set(checked) == set(HUES)


def test_nothing_conspicuous_is_left_out_of_coco(demo_root, demo_files):
    data = demo_files['instances_val2017']
    groups = by_image(data['annotations'])
    for image in data['images']:
        masks = [rasterise(a['segmentation'], image) for a in groups[image['id']]]
        rest = ~grow(np.any(masks, axis=0), 3)
        pixels = read_image(demo_root, image)
        hsv = cv2.cvtColor(cv2.GaussianBlur(pixels, (5, 5), 0), cv2.COLOR_BGR2HSV)[rest]
        assert hsv[:, 1].max() < 110  # all saturated colours belong to annotated objects
        assert hsv[:, 2].min() > 40  # so do black
        assert hsv[:, 2].max() < 225  # and white


@pytest.mark.parametrize('split', SPLITS)
def test_negative_and_not_exhaustive_lists_mean_what_they_say(demo_files, split):
    """COCO's file holds every visible object (tested above), so it tells what is in an image."""
    lvis, coco = demo_files[f'lvis_v1_{split}'], demo_files[f'instances_{split}2017']
    listed, visible = by_image(lvis['annotations']), by_image(coco['annotations'])
    everything = {c['id'] for c in lvis['categories']}
    named_negative, partial_images = set(), 0
    for image in lvis['images']:
        present = {a['category_id'] for a in visible[image['id']]}
        annotated = Counter(a['category_id'] for a in listed[image['id']])
        negative = set(image['neg_category_ids'])
        assert len(negative) == len(image['neg_category_ids'])
        assert negative
        assert not negative & present
        assert negative < everything - present
        missing = Counter(a['category_id'] for a in visible[image['id']]) - annotated
        assert set(image['not_exhaustive_category_ids']) == set(missing)
        assert set(missing) <= set(annotated)
        partial_images += bool(missing)
        named_negative |= negative
    assert named_negative == everything
    assert 0.03 < partial_images / len(lvis['images']) < 0.3


@pytest.mark.parametrize('split', SPLITS)
def test_coco_has_the_same_scenes(demo_root, demo_files, split):
    lvis, coco = demo_files[f'lvis_v1_{split}'], demo_files[f'instances_{split}2017']
    assert [i['coco_url'] for i in lvis['images']] == [i['coco_url'] for i in coco['images']]
    assert [i['id'] for i in lvis['images']] == [i['id'] for i in coco['images']]
    assert [c['name'] for c in lvis['categories']] == [c['name'] for c in coco['categories']]
    shapes = {(a['image_id'], a['category_id'], str(a['bbox'])) for a in coco['annotations']}
    assert {(a['image_id'], a['category_id'], str(a['bbox'])) for a in lvis['annotations']} < shapes
    assert {a['iscrowd'] for a in coco['annotations']} == {0}
    for image in coco['images']:
        path = demo_root / f'{split}2017' / image['file_name']
        assert cv2.imread(str(path)).shape == (image['height'], image['width'], 3)
        assert int(path.stem) == image['id']
    api = COCO(demo_root / 'annotations' / f'instances_{split}2017.json')
    assert len(api.getAnnIds()) == len(coco['annotations'])


def test_no_leak_between_splits(demo_root, demo_files):
    ids = [{i['id'] for i in demo_files[f'lvis_v1_{s}']['images']} for s in SPLITS]
    assert [len(group) for group in ids] == [200, 60]
    assert not ids[0] & ids[1]
    digests = [hashlib.sha256(p.read_bytes()).hexdigest() for p in demo_root.glob('*2017/*.jpg')]
    assert len(digests) == len(set(digests)) == 260
    boxes = [{str(a['bbox']) for a in demo_files[f'lvis_v1_{s}']['annotations']} for s in SPLITS]
    assert not boxes[0] & boxes[1]


def test_same_arguments_same_bytes_other_seed_other_scenes(small_set):
    first, second, other = small_set(), small_set(), small_set(seed=1)
    assert tree_digest(first) == tree_digest(second)
    image = 'train2017/000000000001.jpg'
    assert tree_digest(first)[image] != tree_digest(other)[image]


def test_second_run_writes_nothing(small_set):
    root = small_set()
    before = {p: p.stat().st_mtime_ns for p in root.rglob('*')}
    time.sleep(0.02)
    small_set(root)
    assert {p: p.stat().st_mtime_ns for p in root.rglob('*')} == before


@pytest.mark.parametrize(
    'victim', ['demo_stamp.json', 'val2017/000000000012.jpg', 'annotations/lvis_v1_val.json']
)
@pytest.mark.parametrize('damage', ['missing', 'cut'])
def test_half_written_set_is_made_again(small_set, victim, damage):
    root = small_set()
    whole = tree_digest(root)
    path = root / victim
    content = path.read_bytes()
    path.unlink()
    if damage == 'cut':
        path.write_bytes(content[: len(content) // 2])
    small_set(root)
    assert tree_digest(root) == whole


def test_killed_run_leaves_no_stamp_and_is_repaired(small_set, monkeypatch, tmp_path):
    import eva_mm.demo.generate as module

    draw, drawn = module.draw_scene, []

    def dies(*args):
        if len(drawn) == 5:
            raise KeyboardInterrupt
        drawn.append(1)
        return draw(*args)

    monkeypatch.setattr(module, 'draw_scene', dies)
    with pytest.raises(KeyboardInterrupt):
        small_set(tmp_path / 'set')
    assert len(list((tmp_path / 'set' / 'train2017').iterdir())) == 5
    assert not (tmp_path / 'set' / 'demo_stamp.json').exists()
    monkeypatch.undo()
    assert tree_digest(small_set(tmp_path / 'set')) == tree_digest(small_set())


def test_other_arguments_replace_the_set(small_set):
    root = small_set(num_train=10)
    small_set(root, num_train=9)
    assert len(list((root / 'train2017').iterdir())) == 9
    assert tree_digest(root) == tree_digest(small_set())


def test_foreign_data_is_never_touched(small_set, tmp_path):
    (tmp_path / 'train2017').mkdir()
    photo = tmp_path / 'train2017' / '000000000009.jpg'
    photo.write_bytes(b'a real photo')
    with pytest.raises(FileExistsError, match='did not write.*000000000009'):
        small_set(tmp_path)
    assert photo.read_bytes() == b'a real photo'
    assert not (tmp_path / 'annotations').exists()


@pytest.mark.parametrize('size', [64, (96, 160), (300, 128)])
def test_any_size(small_set, size):
    root = small_set(size=size, num_train=6, num_val=6)
    height, width = (size, size) if isinstance(size, int) else size
    for split in SPLITS:
        data = json.loads((root / 'annotations' / f'lvis_v1_{split}.json').read_text())
        assert {a['category_id'] for a in data['annotations']} == set(range(1, 25))
        assert any(i['not_exhaustive_category_ids'] for i in data['images'])
        for image in data['images']:
            assert (image['height'], image['width']) == (height, width)
            assert read_image(root, image).shape == (height, width, 3)
        for annotation in data['annotations']:
            x, y, w, h = annotation['bbox']
            assert x >= 0
            assert y >= 0
            assert x + w <= width
            assert y + h <= height
            mask = rasterise(annotation['segmentation'], {'height': height, 'width': width})
            assert mask.sum() == pytest.approx(annotation['area'], rel=0.1, abs=12)


def test_few_images_warn_and_groups_follow_the_counts(tmp_path):
    with pytest.warns(UserWarning, match='too few for frequent'):
        generate_lvis(tmp_path, 40, 6, 64)
    data = json.loads((tmp_path / 'annotations' / 'lvis_v1_train.json').read_text())
    assert {c['frequency'] for c in data['categories']} == {'r', 'c'}


@pytest.mark.parametrize('num_train', [180, 333, 1500])
def test_groups_hold_for_larger_sets(num_train):
    from eva_mm.demo.catalogue import CATEGORIES
    from eva_mm.demo.plan import plan_split

    images = Counter(i for plan in plan_split('train', num_train, 3) for i in set(plan.categories))
    limits = {'r': (1, 10), 'c': (11, 100), 'f': (101, num_train)}
    for index, category in enumerate(CATEGORIES):
        low, high = limits[category.group]
        assert low <= images[index] <= high


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'num_train': 3}, 'num_train is 3, but at least 6'),
        ({'num_val': 0}, 'num_val is 0, but at least 6'),
        ({'size': 32}, 'size is 32, expected sides of at least 64'),
        ({'size': (64, 640)}, 'at most threefold'),
        ({'seed': -1}, 'seed is -1, expected a non-negative'),
    ],
)
def test_impossible_requests_name_the_argument(small_set, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        small_set(tmp_path / 'set', **change)
    assert not (tmp_path / 'set').exists()


def test_crowds_are_coco_crowds_and_not_exhaustive_in_lvis(small_set):
    root = small_set(size=128, num_train=20, crowds=True)
    coco = json.loads((root / 'annotations' / 'instances_train2017.json').read_text())
    lvis = json.loads((root / 'annotations' / 'lvis_v1_train.json').read_text())
    images = {image['id']: image for image in coco['images']}
    partial = {i['id']: i['not_exhaustive_category_ids'] for i in lvis['images']}
    crowds = [a for a in coco['annotations'] if a['iscrowd']]
    assert crowds
    for crowd in crowds:
        assert partial[crowd['image_id']] == [crowd['category_id']]
        mask = rasterise(crowd['segmentation'], images[crowd['image_id']])
        assert mask.sum() == crowd['area']
        runs = coco_mask.encode(np.asfortranarray(mask))
        assert coco_mask.toBbox(runs).tolist() == crowd['bbox']


def test_mmdet_reads_both_formats(demo_root, demo_files):
    pytest.importorskip('mmdet')
    from mmdet.datasets import CocoDataset

    names = tuple(c['name'] for c in demo_files['instances_val2017']['categories'])
    dataset = CocoDataset(
        ann_file='annotations/instances_val2017.json',
        data_root=str(demo_root),
        data_prefix={'img': 'val2017/'},
        metainfo={'classes': names},
        pipeline=[],
    )
    assert len(dataset) == 60
    instances = sum(len(dataset.get_data_info(i)['instances']) for i in range(60))
    assert instances == len(demo_files['instances_val2017']['annotations'])


def run_tool(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *args], cwd=ROOT, capture_output=True, text=True, check=False,
        env={'PYTHONPATH': str(ROOT), 'PATH': '/usr/bin:/bin'},
    )  # fmt: skip


def test_command_line(tmp_path, small_set):
    out = tmp_path / 'set'
    done = run_tool('tools/make_demo.py', 'lvis', '--out', str(out), '--num-train', '9',
                    '--num-val', '7', '--size', '96', '96')  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert tree_digest(out) == tree_digest(small_set())


@pytest.mark.parametrize('tool', ['make_demo.py', 'draw.py'])
def test_help_needs_no_heavy_import(tool):
    code = (
        'import runpy, sys; sys.argv = [sys.argv[1], "--help"]\n'
        'try: runpy.run_path(sys.argv[0], run_name="__main__")\n'
        'except SystemExit as stop: assert not stop.code\n'
        'assert not {"cv2", "numpy"} & set(sys.modules)'
    )
    done = run_tool('-c', code, f'tools/{tool}')
    assert done.returncode == 0, done.stderr
    assert 'usage' in done.stdout
