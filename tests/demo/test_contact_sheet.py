import json

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from eva_mm.demo import contact_sheet
from eva_mm.demo.contact_sheet import draw_contact_sheet


@pytest.fixture(scope='module')
def root(small_set):
    return small_set(size=128)


@pytest.fixture
def results(root) -> list:
    """The ground truth of val as predictions of score 0.9."""
    data = json.loads((root / 'annotations' / 'lvis_v1_val.json').read_text())
    images = {i['id']: i for i in data['images']}
    found = []
    for a in data['annotations']:
        size = images[a['image_id']]['height'], images[a['image_id']]['width']
        runs = coco_mask.merge(coco_mask.frPyObjects(a['segmentation'], *size))
        runs['counts'] = runs['counts'].decode()
        found.append(
            {'image_id': a['image_id'], 'category_id': a['category_id'], 'bbox': a['bbox'],
             'score': 0.9, 'segmentation': runs}
        )  # fmt: skip
    return found


@pytest.fixture
def draw(root, tmp_path):
    def call(results, annotations='lvis_v1_val.json', images=None, num_images=2, **kwargs):
        path = tmp_path / 'results.json'
        path.write_text(json.dumps(results))
        out = draw_contact_sheet(
            root / 'annotations' / annotations, images or root, path, tmp_path / 'a' / 's.png',
            num_images, **kwargs,
        )  # fmt: skip
        assert [p.name for p in out.parent.iterdir()] == ['s.png']
        return cv2.imread(str(out))

    return call


def pair(sheet: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ground-truth and prediction panel of a sheet of one image."""
    panel, gap = contact_sheet._PANEL, contact_sheet._GAP
    top = contact_sheet._HEADER + contact_sheet._CAPTION
    return tuple(
        sheet[top : top + panel, start : start + panel] for start in (gap, 2 * gap + panel)
    )


@pytest.mark.parametrize('annotations', ['lvis_v1_val.json', 'instances_val2017.json'])
def test_predictions_beside_ground_truth(draw, results, annotations):
    truth, guess = pair(draw(results, annotations, num_images=1))
    empty_truth, empty = pair(draw([], annotations, num_images=1))
    np.testing.assert_array_equal(truth, empty_truth)
    drawn = (guess != empty).any(-1).mean()
    assert drawn > 0.1
    # Equal masks, boxes and colours: panels differ by the scores in the labels, and, in the COCO
    # file, by what LVIS leaves out.
    assert (truth != guess).any(-1).mean() < 0.6 * drawn


def test_low_scores_are_not_drawn(draw, results):
    for result in results:
        result['score'] = 0.2
    np.testing.assert_array_equal(draw(results)[200:], draw([])[200:])
    assert (draw(results, score_thr=0.1)[200:] != draw([])[200:]).any()


def test_number_of_images_sets_the_sheet_size(draw, results):
    heights = [draw(results, num_images=n).shape[0] for n in (1, 2, 3, 7, 50)]
    assert heights[0] == heights[1] < heights[2] < heights[3] == heights[4]


def test_panels_of_wide_images_waste_no_height(small_set, tmp_path):
    root = small_set(size=(80, 160))
    (tmp_path / 'r.json').write_text('[]')
    file = root / 'annotations' / 'lvis_v1_val.json'
    out = draw_contact_sheet(file, root, tmp_path / 'r.json', tmp_path / 'o.png', num_images=1)
    margins = contact_sheet._HEADER + contact_sheet._CAPTION + contact_sheet._GAP
    assert cv2.imread(str(out)).shape[0] == margins + contact_sheet._PANEL // 2


def test_image_folder_may_be_the_split_itself(draw, results, root):
    np.testing.assert_array_equal(draw(results), draw(results, images=root / 'val2017'))


def test_boxes_alone_are_drawn(draw, results):
    boxes = [{k: v for k, v in r.items() if k != 'segmentation'} for r in results]
    masks = [{k: v for k, v in r.items() if k != 'bbox'} for r in results]
    sheets = [draw(r) for r in ([], boxes, masks, results)]
    for i in range(3):
        assert (sheets[i] != sheets[i + 1]).any()


def test_crowd_regions_are_drawn(small_set, tmp_path):
    root = small_set(size=128, num_train=20, crowds=True)
    (tmp_path / 'r.json').write_text('[]')
    file = root / 'annotations' / 'instances_train2017.json'
    assert any(a['iscrowd'] for a in json.loads(file.read_text())['annotations'])
    out = draw_contact_sheet(file, root, tmp_path / 'r.json', tmp_path / 'o.png', num_images=20)
    assert out.stat().st_size > 100_000


def test_labels_never_cover_one_another(draw, results, monkeypatch):
    """Even when three predictions sit on every object."""
    panels, original = [], contact_sheet._free_spot

    def record(width, box, boxes, placed, shape):
        spot = original(width, box, boxes, placed, shape)
        if not placed:
            panels.append([])
        if spot is not None:
            x0, y0, x1, y1 = spot
            assert min(x0, y0) >= 0
            assert x1 <= shape[1]
            assert y1 <= shape[0]
            panels[-1].append(spot)
        return spot

    monkeypatch.setattr(contact_sheet, '_free_spot', record)
    draw(results * 3)
    assert max(len(spots) for spots in panels) >= 10
    for spots in panels:
        taken = np.zeros((contact_sheet._PANEL,) * 2, int)
        for x0, y0, x1, y1 in spots:
            taken[y0:y1, x0:x1] += 1
        assert taken.max() == 1


def test_rare_categories_are_chosen_first():
    images = [{'id': i} for i in (1, 2, 3)]
    categories = {1: {'frequency': 'f'}, 2: {'frequency': 'r'}, 3: {'frequency': 'f'}}
    truth = {1: [{'category_id': 1}, {'category_id': 3}], 2: [{'category_id': 2}],
             3: [{'category_id': 1}]}  # fmt: skip
    chosen = contact_sheet._choose_images(images, truth, categories, 2)
    assert [image['id'] for image in chosen] == [1, 2]
    assert contact_sheet._choose_images(images, truth, categories, 1) == [{'id': 2}]


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'image_id': 999}, 'has image_id 999 .*does not list'),
        ({'category_id': 77}, 'has category_id 77 .*does not list'),
        (
            {'segmentation': {'size': [5, 5], 'counts': 'i0'}},
            r'size \[5, 5\], expected \[128, 128\]',
        ),
    ],
)
def test_results_of_another_data_set_are_refused(draw, results, change, message):
    with pytest.raises(ValueError, match=message):
        draw([r | change for r in results])


def test_wrong_files_are_named(root, tmp_path, draw, results):
    good = root / 'annotations' / 'lvis_v1_val.json'
    (tmp_path / 'r.json').write_text('[]')
    (tmp_path / 'broken.json').write_text('[{')
    with pytest.raises(FileNotFoundError, match='annotations file .*none.json does not exist'):
        draw_contact_sheet(tmp_path / 'none.json', root, tmp_path / 'r.json', tmp_path / 'o.png')
    with pytest.raises(FileNotFoundError, match='results file .*none.json does not exist'):
        draw_contact_sheet(good, root, tmp_path / 'none.json', tmp_path / 'o.png')
    with pytest.raises(ValueError, match='broken.json is not JSON'):
        draw_contact_sheet(good, root, tmp_path / 'broken.json', tmp_path / 'o.png')
    with pytest.raises(ValueError, match="expected LVIS or COCO annotations with 'images'"):
        draw_contact_sheet(tmp_path / 'r.json', root, tmp_path / 'r.json', tmp_path / 'o.png')
    with pytest.raises(FileNotFoundError, match='image .* is not in'):
        draw_contact_sheet(good, tmp_path, tmp_path / 'r.json', tmp_path / 'o.png')
    with pytest.raises(ValueError, match='expected a list of results, found dict'):
        draw({'a': 1})
    with pytest.raises(ValueError, match='result 0 lacks score'):
        draw([{k: v for k, v in results[0].items() if k != 'score'}])
    assert not (tmp_path / 'o.png').exists()
