"""Draft-mode decoding: the same geometry, nearly the same pixels, and the full image elsewhere."""

import io
import itertools

import cv2
import mmcv
import numpy as np
import pytest
from mmcv.transforms import Compose
from mmengine.registry import init_default_scope
from PIL import Image

from eva_mm.detection.datasets import EVACocoDataset
from eva_mm.detection.drafts import DraftImage, LoadDraftImage
from eva_mm.detection.transforms import LargeScaleJitter
from eva_mm.errors import InputError, UnreadableFileError
from tests.detection.test_transforms_trimmed import photo_like

JPEG = dict(format='JPEG', quality=95, subsampling=0)


def encoded(image, orientation=None, **options):
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, exif=exif, **{**JPEG, **options})
    return buffer.getvalue()


def photo(height, width, seed=0):
    return Image.fromarray(photo_like(np.random.default_rng(seed), height, width))


def in_full(data, size, window):
    """What :class:`LargeScaleJitter` makes of the image without draft mode."""
    image = Image.fromarray(np.ascontiguousarray(mmcv.imfrombytes(data, backend='pillow')))
    x1, y1, x2, y2 = window
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR)).astype(int)[y1:y2, x1:x2]


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('mode', ['RGB', 'L', 'CMYK'])
def test_pixels_and_orientation(orientation, mode):
    """641 x 427: no reduced size divides it, so that a padded edge would show."""
    data = encoded(photo(427, 641).convert(mode), orientation)
    draft = DraftImage(data)
    height, width = draft.shape[:2]
    assert np.array_equal(np.asarray(draft), mmcv.imfrombytes(data, backend='pillow'))
    assert draft.shape == np.asarray(draft).shape
    assert ((height, width) == (641, 427)) == (orientation > 4)
    for divisor in (2, 3, 4.7, 8, 20):
        size = (int(width / divisor), int(height / divisor))
        window = (size[0] // 3, 0, size[0], size[1] // 2)
        found = draft.cut_draft(size, window)
        expected = in_full(data, size, window)
        assert found.shape == expected.shape
        assert np.abs(found - expected).mean() < 2.0


def edge_position(row):
    """Where a row that falls from bright to dark crosses the middle, in pixels."""
    return np.clip((row.astype(float) - row.min()) / np.ptp(row), 0, 1).sum()


@pytest.mark.parametrize('width', [1600, 1601, 1607])
def test_edges_stay_in_place(width):
    """A fiftieth of a pixel of the result; the padding of 1601 px, if taken for image, is 0.5."""
    pixels = np.full((64, width, 3), 20, np.uint8)
    pixels[:, :1400] = 230
    draft = DraftImage(encoded(Image.fromarray(pixels)))
    found = draft.cut_draft((120, 8), (0, 0, 120, 8))
    expected = 1400 * 120 / width
    assert edge_position(found[4, :, 0]) == pytest.approx(expected, abs=0.02)


def test_is_not_used_where_nothing_is_saved():
    draft = DraftImage(encoded(photo(100, 200)))
    assert draft.cut_draft((101, 50), (0, 0, 101, 50)) is None
    assert draft.cut_draft((100, 51), (0, 0, 100, 51)) is None
    assert draft.cut_draft((100, 50), (0, 0, 100, 50)) is not None
    png = DraftImage(encoded(photo(100, 200), format='PNG'))
    assert png.cut_draft((20, 10), (0, 0, 20, 10)) is None
    assert np.array_equal(np.asarray(png)[..., ::-1], np.asarray(photo(100, 200)))


def test_less_is_decoded(monkeypatch):
    sizes = []
    resize = Image.Image.resize

    def spy(image, *args, **kwargs):
        sizes.append(image.size)
        return resize(image, *args, **kwargs)

    monkeypatch.setattr(Image.Image, 'resize', spy)
    draft = DraftImage(encoded(photo(480, 640)))
    for width in (320, 170, 160, 81, 80, 10):
        draft.cut_draft((width, width * 3 // 4), (0, 0, 1000, 1000))
    assert [size[0] for size in sizes] == [320, 320, 160, 160, 80, 80]


@pytest.mark.parametrize('flips', list(itertools.product([(), (0,), (1,), (0, 1)], repeat=2)))
def test_flips_are_taken_note_of(flips):
    data = encoded(photo(90, 130))
    draft, array = DraftImage(data), mmcv.imfrombytes(data, backend='pillow')
    for axes in flips:
        if axes:
            draft, array = np.flip(draft, axes), np.flip(array, axes)
    assert isinstance(draft, DraftImage)
    assert draft.shape == array.shape
    assert np.array_equal(np.asarray(draft), array)
    found = draft.cut_draft((60, 40), (0, 0, 60, 40))
    expected = cv2.resize(array, (60, 40), interpolation=cv2.INTER_AREA)
    assert np.abs(found.astype(int) - expected).mean() < 4


def test_other_uses_decode():
    data = encoded(photo(30, 40))
    draft, array = DraftImage(data), mmcv.imfrombytes(data, backend='pillow')
    for index in (3, slice(2, 9), (slice(None), slice(None, None, 2)), (..., 0), (0, 0, 0),
                  (slice(None), slice(None), slice(None, None, -1)), np.array([1, 5])):  # fmt: skip
        assert np.array_equal(draft[index], array[index])
    assert np.asarray(draft, dtype=np.float32).dtype == np.float32
    assert draft.dtype == array.dtype
    assert draft.ndim == array.ndim


def record(path, height, width, masks):
    rng = np.random.default_rng(1)
    corners = rng.uniform(0, 0.7, (5, 2)) * (width, height)
    boxes = np.concatenate([corners, corners + rng.uniform(30, 90, (5, 2))], axis=1)
    instances = [
        dict(bbox=box, bbox_label=i, ignore_flag=0) for i, box in enumerate(boxes.tolist())
    ]
    for instance in instances if masks else []:
        x1, y1, x2, y2 = instance['bbox']
        instance['mask'] = [[x1, y1, x2, y1, x2, y2]]
    return dict(
        img_path=str(path), img_id=1, height=height, width=width, instances=instances,
        seg_map_path=None,
    )  # fmt: skip


@pytest.mark.parametrize('masks', [True, False])
@pytest.mark.parametrize('orientation', [None, 6])
def test_pipeline_keeps_every_annotation_in_place(tmp_path, masks, orientation):
    """Boxes and polygons are those without draft mode, whatever is drawn; pixels are close."""
    init_default_scope('mmdet')
    path = tmp_path / 'a.jpg'
    path.write_bytes(encoded(photo(600, 800), orientation))
    height, width = (800, 600) if orientation else (600, 800)
    steps = [
        dict(type='LoadAnnotations', with_bbox=True, with_mask=masks, poly2mask=False),
        dict(type='RandomFlip', prob=0.5),
        dict(type='LargeScaleJitter', scale=(400, 400)),
        dict(type='PackDetInputs'),
    ]
    plain = Compose([dict(type='LoadImageFromFile', imdecode_backend='pillow'), *steps])
    drafted = Compose([dict(type='LoadDraftImage', imdecode_backend='pillow'), *steps])
    flips, equal = set(), set()
    for seed in range(12):
        np.random.seed(seed)
        expected = plain(record(path, height, width, masks))
        np.random.seed(seed)
        found = drafted(record(path, height, width, masks))
        reference, sample = expected['data_samples'], found['data_samples']
        assert sample.metainfo == reference.metainfo
        flips.add(sample.flip)
        boxes = sample.gt_instances.bboxes.tensor
        assert boxes.tolist() == reference.gt_instances.bboxes.tensor.tolist()
        assert sample.gt_instances.labels.tolist() == reference.gt_instances.labels.tolist()
        if masks:
            areas = sample.gt_instances.masks.areas
            assert areas.tolist() == reference.gt_instances.masks.areas.tolist()
        assert found['inputs'].shape == expected['inputs'].shape
        difference = (found['inputs'].int() - expected['inputs']).abs()
        assert difference.float().mean() < 2
        shrinks = min(new / old for new, old in zip(sample.scale_factor, (1, 1))) <= 0.5
        equal.add((shrinks, difference.max().item() == 0))
    assert flips == {True, False}
    assert equal == {(True, False), (False, True)}, 'drafts exactly where they save something'


def test_refused_arguments():
    with pytest.raises(InputError, match="imdecode_backend is 'pillow', got 'cv2'"):
        LoadDraftImage(imdecode_backend='cv2')
    with pytest.raises(InputError, match='to_float32'):
        LoadDraftImage(to_float32=True)


def write_data(root, content):
    (root / 'a.jpg').write_bytes(content)
    annotations = dict(
        images=[dict(id=1, file_name='a.jpg', height=300, width=400)],
        categories=[dict(id=1, name='thing')],
        annotations=[dict(id=1, image_id=1, category_id=1, bbox=[10, 10, 50, 50], iscrowd=0,
                          area=2500, segmentation=[[10, 10, 60, 10, 60, 60]])],
    )  # fmt: skip
    (root / 'a.json').write_text(str(annotations).replace("'", '"'))


@pytest.mark.parametrize('ratio_range', [(0.1, 0.1), (1.0, 1.0)])
@pytest.mark.parametrize('kept', [0.0, 0.02, 0.5, 1.0])
def test_broken_files_are_named(tmp_path, ratio_range, kept):
    """Also what shows at decoding only, after the file was opened."""
    init_default_scope('mmdet')
    content = encoded(photo(300, 400))
    write_data(tmp_path, content[: int(kept * len(content))])
    jitter = dict(type='LargeScaleJitter', scale=(400, 400), ratio_range=ratio_range)
    dataset = EVACocoDataset(
        ann_file=str(tmp_path / 'a.json'), data_prefix=dict(img=str(tmp_path)),
        pipeline=[
            dict(type='LoadDraftImage'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True, poly2mask=False),
            jitter, dict(type='PackDetInputs'),
        ],
    )  # fmt: skip
    if kept == 1:
        assert dataset[0]['inputs'].shape[0] == 3
        return
    with pytest.raises(UnreadableFileError, match='cannot read image .*a.jpg'):
        dataset[0]


def test_stands_in_for_the_array_in_the_jitter_alone():
    """Direct use, without a loader."""
    data = encoded(photo(120, 160))
    results = LargeScaleJitter(scale=(40, 40)).apply(dict(img=DraftImage(data)), 1.5, 0.5)
    assert results['img'].shape == (40, 40, 3)
    assert results['scale_factor'] == (60 / 160, 45 / 120)


@pytest.mark.parametrize('orientation', [None, 3, 6])
@pytest.mark.parametrize('mode', ['RGB', 'L'])
@pytest.mark.parametrize('subsampling', [0, 2])
def test_opencv_reads_the_same_pixels(orientation, mode, subsampling):
    """Both decode by libjpeg-turbo: what the docs say of ``imdecode_backend='cv2'``."""
    data = encoded(photo(121, 163).convert(mode), orientation, subsampling=subsampling)
    found, expected = (mmcv.imfrombytes(data, backend=name) for name in ('cv2', 'pillow'))
    assert np.array_equal(found, expected)


@pytest.mark.parametrize('kept', [0.02, 0.5, 0.99])
def test_opencv_refuses_half_a_file_as_well(kept):
    data = encoded(photo(120, 160))
    part = data[: int(kept * len(data))]
    assert mmcv.imfrombytes(part, backend='cv2') is None
    with pytest.raises(OSError, match='(?i)truncated|identify'):
        mmcv.imfrombytes(part, backend='pillow')
