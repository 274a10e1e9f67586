"""Draws predictions beside ground truth: one PNG that shows what a detector has learnt."""

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from eva_mm.errors import InputError, MissingFileError

_PANEL = 520  # side of the square an image is fitted into, pixels
_GAP = 16
_PAIR_GAP = 36
_CAPTION = 34
_HEADER = 64
_PAIRS_PER_ROW = 2
_MAX_SHOWN = 15
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_LABEL_SCALE = 0.44
_LABEL_HEIGHT = 18
_MASK_OPACITY = 0.3

# BGR
_PAPER = (250, 250, 250)
_INK = (40, 40, 40)
_FAINT = (120, 120, 120)
_LETTERBOX = (228, 228, 228)
_LABEL_FILL = (32, 32, 32)
_LABEL_TEXT = (255, 255, 255)
_GROUPS = {
    'r': ((60, 60, 215), 'rare: in 1-10 training images'),
    'c': ((20, 140, 235), 'common: in 11-100'),
    'f': ((75, 150, 40), 'frequent: in more than 100'),
}


@dataclass(frozen=True)
class _Item:
    """One object to draw: ``box`` x0, y0, x1, y1 in image pixels, ``mask`` (H, W) bool or None."""

    category_id: int
    box: np.ndarray
    mask: np.ndarray | None
    score: float | None


def draw_contact_sheet(
    annotations_json: str | os.PathLike,
    image_dir: str | os.PathLike,
    results_json: str | os.PathLike,
    out_png: str | os.PathLike,
    num_images: int = 8,
    score_thr: float = 0.3,
    image_ids: Sequence[int] | None = None,
) -> Path:
    """Draws ground truth and predictions side by side for a few telling images.

    Unless they are named, images are chosen so that together they show many categories, rare ones
    first.

    Args:
        annotations_json: LVIS (``coco_url``) or COCO (``file_name``) annotations.
        image_dir: Folder of the images, or its parent (holding ``val2017/`` ...).
        results_json: List of COCO-format results: image_id, category_id, score, bbox (x, y, w, h
            in pixels) and/or segmentation (run lengths with size and counts).
        out_png: Where to write.
        num_images: At most so many images.
        score_thr: Predictions below are not shown.
        image_ids: Images to draw, in this order, instead of ``num_images`` chosen ones.

    Returns:
        ``out_png``.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is not what it should be, or names unknown images or categories.
    """
    if num_images < 1:
        raise InputError(f'num_images is {num_images}, expected at least 1')
    annotations = _read_json(annotations_json, 'annotations')
    results = _read_json(results_json, 'results')
    _check(annotations, annotations_json, results, results_json)
    truth, found = _by_image(annotations['annotations']), _by_image(results)
    categories = {category['id']: category for category in annotations['categories']}
    if image_ids is None:
        chosen = _choose_images(annotations['images'], truth, categories, num_images)
    else:
        listed = {record['id']: record for record in annotations['images']}
        chosen = [listed[image_id] for image_id in image_ids]
    if not chosen:
        raise InputError(f'{annotations_json} has no image to draw')
    height = max(_fitted(record['height'], record['width'])[0] for record in chosen)
    pairs = []
    for record in chosen:
        image = _read_image(record, Path(image_dir))
        shape = image.shape[:2]
        real = [_item(a, shape, None) for a in truth[record['id']]]
        kept = [r for r in found[record['id']] if r['score'] >= score_thr]
        kept.sort(key=lambda r: -r['score'])
        guessed = [_item(r, shape, r['score']) for r in kept[:_MAX_SHOWN]]
        shown = f'{len(guessed)} of {len(kept)}' if len(kept) > len(guessed) else f'{len(kept)}'
        captions = (
            ('ground truth', f'image {record["id"]}, {len(real)} annotated'),
            ('prediction', f'{shown} with score >= {score_thr:g}'),
        )
        panels = [_draw_panel(image, items, categories, height) for items in (real, guessed)]
        pairs.append([_with_caption(*entry) for entry in zip(panels, captions)])
    sheet = _assemble(pairs, any('frequency' in c for c in categories.values()))
    return _write_png(Path(out_png), sheet)


# Reading ----------------------------------------------------------------------------------------


def _read_json(path: str | os.PathLike, what: str) -> Any:
    if not Path(path).is_file():
        raise MissingFileError(f'{what} file {path} does not exist')
    try:
        return json.loads(Path(path).read_text())
    except json.JSONDecodeError as error:
        raise InputError(f'{what} file {path} is not JSON: {error}') from error


def _check(annotations: Any, annotations_path: Any, results: Any, results_path: Any) -> None:
    for key in ('images', 'annotations', 'categories'):
        if not isinstance(annotations, dict) or not isinstance(annotations.get(key), list):
            raise InputError(f"{annotations_path}: expected LVIS or COCO annotations with '{key}'")
    if not annotations['images']:
        raise InputError(f'{annotations_path} lists no images')
    if not isinstance(results, list):
        raise InputError(
            f'{results_path}: expected a list of results, found {type(results).__name__}'
        )
    for number, result in enumerate(results):
        missing = {'image_id', 'category_id', 'score'} - set(result)
        if missing or not {'bbox', 'segmentation'} & set(result):
            lacks = ', '.join(sorted(missing)) or 'bbox or segmentation'
            raise InputError(f'{results_path}: result {number} lacks {lacks}')
    for key, records in (('image_id', 'images'), ('category_id', 'categories')):
        known = {record['id'] for record in annotations[records]}
        unknown = sorted({result[key] for result in results} - known)
        if unknown:
            raise InputError(
                f'{results_path} has {key} {unknown[0]} ({len(unknown)} such ids), which '
                f'{annotations_path} does not list'
            )


def _by_image(records: list[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    groups: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        groups[record['image_id']].append(record)
    return groups


def _choose_images(
    images: list[dict[str, Any]],
    truth: dict[int, list[dict[str, Any]]],
    categories: dict[int, dict[str, Any]],
    num_images: int,
) -> list[dict[str, Any]]:
    """Greedily covers the categories, rare ones weighing most; in the file's order."""
    weights = {key: {'r': 4, 'c': 2}.get(c.get('frequency'), 1) for key, c in categories.items()}
    present = [{a['category_id'] for a in truth[image['id']]} for image in images]
    covered: set[int] = set()
    chosen: list[int] = []
    while len(chosen) < min(num_images, len(images)):
        rest = [i for i in range(len(images)) if i not in chosen]
        gains = {i: sum(weights[c] for c in present[i] - covered) for i in rest}
        best = max(rest, key=lambda i: (gains[i], len(truth[images[i]['id']]), -i))
        chosen.append(best)
        covered |= present[best]
        if not any(present[i] - covered for i in rest):
            covered.clear()
    return [images[i] for i in sorted(chosen)]


def _read_image(record: dict[str, Any], folder: Path) -> np.ndarray:
    """(H, W, 3) uint8 BGR."""
    url = record.get('coco_url', '')
    # LVIS has no file_name; its url ends in the split's folder and the file.
    names = [record.get('file_name', ''), '/'.join(url.split('/')[-2:]), url.split('/')[-1]]
    names = [name for name in names if name]
    if not names:
        raise InputError(f'image {record["id"]} has neither file_name nor coco_url')
    for path in (folder / name for name in names):
        if path.is_file():
            image = cv2.imread(str(path))
            if image is None:
                raise InputError(f'{path} is not an image OpenCV can read')
            if image.shape[:2] != (record['height'], record['width']):
                raise InputError(
                    f'{path} is {image.shape[0]} x {image.shape[1]} pixels (height x width), '
                    f'the annotations say {record["height"]} x {record["width"]}'
                )
            return image
    raise MissingFileError(
        f'image {record["id"]} ({names[-1]}) is not in {folder}, expected the folder of images or '
        f'its parent'
    )


def _item(record: dict[str, Any], shape: tuple[int, int], score: float | None) -> _Item:
    mask = None
    if record.get('segmentation'):
        mask = _decode(record['segmentation'], shape, record['image_id'])
    if 'bbox' in record:
        x, y, width, height = record['bbox']
        box = np.array([x, y, x + width, y + height], float)
    else:
        box = _mask_box(mask)
    return _Item(record['category_id'], box, mask, score)


def _decode(segmentation: Any, shape: tuple[int, int], image_id: int) -> np.ndarray:
    """(H, W) bool from polygons or run lengths (counts as a list or a string)."""
    from pycocotools import mask as coco_mask

    if isinstance(segmentation, list):
        runs = coco_mask.merge(coco_mask.frPyObjects(segmentation, *shape))
    elif isinstance(segmentation['counts'], list):
        runs = coco_mask.frPyObjects(segmentation, *shape)
    else:
        runs = segmentation
    if tuple(runs['size']) != tuple(shape):
        raise InputError(
            f'a mask of image {image_id} has size {list(runs["size"])}, expected {list(shape)}'
        )
    return coco_mask.decode(runs).astype(bool)


def _mask_box(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return np.zeros(4)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], float)


# Drawing ----------------------------------------------------------------------------------------


def _fitted(height: int, width: int) -> tuple[int, int]:
    """Height and width after scaling the longer side to ``_PANEL`` pixels."""
    scale = _PANEL / max(height, width)
    return round(height * scale), round(width * scale)


def _draw_panel(
    image: np.ndarray,
    items: Sequence[_Item],
    categories: dict[int, dict[str, Any]],
    panel_height: int,
) -> np.ndarray:
    """(panel_height, _PANEL, 3) uint8: the scaled image with masks, boxes and labels."""
    height, width = _fitted(*image.shape[:2])
    scale = _PANEL / max(image.shape[:2])
    method = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    canvas = cv2.resize(image, (width, height), interpolation=method)
    for item in items:
        _draw_mask(canvas, item)
    boxes = [_scaled_box(item.box, scale, (width, height)) for item in items]
    for item, box in zip(items, boxes):
        colour = _colour(item.category_id)
        cv2.rectangle(canvas, box[:2], box[2:], colour, 1, cv2.LINE_AA)
    _draw_labels(canvas, items, boxes, categories)
    panel = np.full((panel_height, _PANEL, 3), _LETTERBOX, np.uint8)
    top, left = (panel_height - height) // 2, (_PANEL - width) // 2
    panel[top : top + height, left : left + width] = canvas
    return panel


def _colour(category_id: int) -> tuple[int, int, int]:
    """A light colour per category; neighbours in id are far apart in hue."""
    hue = category_id * 0.61803398875 % 1 * 180
    pixel = np.array([[[hue, 170, 255]]]).astype(np.uint8)
    return tuple(int(c) for c in cv2.cvtColor(pixel, cv2.COLOR_HSV2BGR)[0, 0])


def _draw_mask(canvas: np.ndarray, item: _Item) -> None:
    if item.mask is None:
        return
    enlarged = cv2.resize(
        item.mask.astype(np.float32), canvas.shape[1::-1], interpolation=cv2.INTER_LINEAR
    )
    inside = enlarged >= 0.5
    colour = np.array(_colour(item.category_id))
    canvas[inside] = np.rint(canvas[inside] * (1 - _MASK_OPACITY) + colour * _MASK_OPACITY).astype(
        np.uint8
    )
    contours, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, contours, -1, (255, 255, 255), 3, cv2.LINE_AA)
    cv2.drawContours(canvas, contours, -1, colour.tolist(), 2, cv2.LINE_AA)


def _scaled_box(box: np.ndarray, scale: float, size: tuple[int, int]) -> list[int]:
    limits = np.array([*size, *size]) - 1
    return np.clip(np.rint(box * scale), 0, limits).astype(int).tolist()


def _draw_labels(
    canvas: np.ndarray,
    items: Sequence[_Item],
    boxes: Sequence[list[int]],
    categories: dict[int, dict[str, Any]],
) -> None:
    """Writes every label where it covers no other one; far ones get a line to their box."""
    placed: list[list[int]] = []
    labels = []
    for item, box in zip(items, boxes):
        category = categories[item.category_id]
        text = category['name'] if item.score is None else f'{category["name"]} {item.score:.2f}'
        group = category.get('frequency')
        width = _text_width(text) + 10 + (_LABEL_HEIGHT if group else 0)
        spot = _free_spot(width, box, boxes, placed, canvas.shape[:2])
        if spot is not None:
            placed.append(spot)
            labels.append((spot, box, item, text, group))
    for spot, box, item, _, _ in labels:
        _draw_leader(canvas, spot, box, _colour(item.category_id))
    for spot, _, item, text, group in labels:
        _draw_label(canvas, spot, text, group, _colour(item.category_id))


def _text_width(text: str, scale: float = _LABEL_SCALE) -> int:
    return cv2.getTextSize(text, _FONT, scale, 1)[0][0]


def _free_spot(
    width: int,
    box: list[int],
    boxes: Sequence[list[int]],
    placed: Sequence[list[int]],
    shape: tuple[int, int],
) -> list[int] | None:
    """x0, y0, x1, y1 of the best free place for a label of a box, None when all is taken."""
    height = _LABEL_HEIGHT
    x0, y0, x1, y1 = box
    spots = [
        (x0, y0 - height - 1),
        (x0, y1 + 2),
        (x1 - width, y0 - height - 1),
        (x1 - width, y1 + 2),
        (x1 + 2, y0),
        (x0 - width - 2, y0),
        (x0 + 1, y0 + 1),
    ]
    grid = np.mgrid[0 : max(shape[1] - width, 1) : 6, 0 : max(shape[0] - height, 1) : 5]
    spots = np.concatenate([np.array(spots), grid.reshape(2, -1).T])
    limits = np.maximum([shape[1] - width, shape[0] - height], 0)
    spots = np.clip(spots, 0, limits)
    rects = np.concatenate([spots, spots + [width, height]], axis=1)
    free = ~_overlaps(rects, placed, margin=2).any(1)
    if not free.any():
        return None
    rects = rects[free]
    centre = (rects[:, :2] + rects[:, 2:]) / 2
    outside = np.maximum(np.maximum([x0, y0] - centre, centre - [x1, y1]), 0)
    # Near the own box, and where possible not upon another object.
    others = [other for other in boxes if other is not box]
    cost = np.abs(outside).sum(1) + 12 * _overlaps(rects, others, margin=-4).sum(1)
    cost += 14 * _overlaps(rects, [box], margin=-4).sum(1)
    return rects[int(np.argmin(cost))].tolist()


def _overlaps(rects: np.ndarray, others: Sequence[list[int]], margin: int) -> np.ndarray:
    """(len(rects), len(others)) bool."""
    others = np.array(others, int).reshape(-1, 4)
    low = np.maximum(rects[:, None, :2], others[None, :, :2] - margin)
    high = np.minimum(rects[:, None, 2:], others[None, :, 2:] + margin)
    return (low < high).all(-1)


def _draw_leader(
    canvas: np.ndarray, spot: list[int], box: list[int], colour: tuple[int, int, int]
) -> None:
    """A line from a label to its box, unless they touch."""
    if _overlaps(np.array([spot]), [box], margin=6)[0, 0]:
        return
    middle = np.array([(spot[0] + spot[2]) // 2, (spot[1] + spot[3]) // 2])
    target = np.clip(middle, box[:2], box[2:])
    cv2.line(canvas, middle.tolist(), target.tolist(), _LABEL_FILL, 3, cv2.LINE_AA)
    cv2.line(canvas, middle.tolist(), target.tolist(), colour, 1, cv2.LINE_AA)


def _draw_label(
    canvas: np.ndarray,
    spot: list[int],
    text: str,
    group: str | None,
    colour: tuple[int, int, int],
) -> None:
    x0, y0, x1, y1 = spot
    cv2.rectangle(canvas, (x0, y0), (x1 - 1, y1 - 1), _LABEL_FILL, -1)
    if group:
        _draw_chip(canvas, x0, y0, group)
        x0 += _LABEL_HEIGHT
    cv2.rectangle(canvas, (x0, y0), (x0 + 2, y1 - 1), colour, -1)
    _write(canvas, text, x0 + 6, y1 - 5, _LABEL_SCALE, _LABEL_TEXT)


def _draw_chip(canvas: np.ndarray, x: int, y: int, group: str) -> None:
    side = _LABEL_HEIGHT
    cv2.rectangle(canvas, (x, y), (x + side - 1, y + side - 1), _GROUPS[group][0], -1)
    _write(canvas, group, x + (side - _text_width(group, 0.5)) // 2, y + side - 6, 0.5, _LABEL_TEXT)


def _write(
    canvas: np.ndarray, text: str, x: int, y: int, scale: float, colour: tuple[int, int, int]
) -> None:
    cv2.putText(canvas, text, (x, y), _FONT, scale, colour, 1, cv2.LINE_AA)


def _with_caption(panel: np.ndarray, caption: tuple[str, str]) -> np.ndarray:
    title, detail = caption
    strip = np.full((_CAPTION, panel.shape[1], 3), _PAPER, np.uint8)
    _write(strip, title, 1, _CAPTION - 11, 0.62, _INK)
    _write(strip, detail, _text_width(title, 0.62) + 14, _CAPTION - 11, 0.46, _FAINT)
    return np.concatenate([strip, panel])


def _assemble(pairs: list[list[np.ndarray]], with_groups: bool) -> np.ndarray:
    """Lays the pairs out in rows under a header."""
    columns = min(_PAIRS_PER_ROW, len(pairs))
    rows = -(-len(pairs) // columns)
    pair_width = 2 * _PANEL + _GAP
    width = columns * pair_width + (columns - 1) * _PAIR_GAP + 2 * _GAP
    cell = pairs[0][0].shape[0] + _GAP
    sheet = np.full((_HEADER + rows * cell, width, 3), _PAPER, np.uint8)
    _draw_header(sheet, with_groups)
    for number, pair in enumerate(pairs):
        row, column = divmod(number, columns)
        top = _HEADER + row * cell
        left = _GAP + column * (pair_width + _PAIR_GAP)
        for side, panel in enumerate(pair):
            start = left + side * (_PANEL + _GAP)
            sheet[top : top + panel.shape[0], start : start + _PANEL] = panel
    return sheet


def _draw_header(sheet: np.ndarray, with_groups: bool) -> None:
    _write(sheet, 'Predictions beside ground truth', _GAP, 40, 0.85, _INK)
    if not with_groups:
        return
    x = _GAP + _text_width('Predictions beside ground truth', 0.85) + 40
    for group, (_, meaning) in _GROUPS.items():
        _draw_chip(sheet, x, 24, group)
        _write(sheet, meaning, x + _LABEL_HEIGHT + 8, 39, 0.48, _INK)
        x += _LABEL_HEIGHT + _text_width(meaning, 0.48) + 30
    cv2.line(sheet, (_GAP, _HEADER - 8), (sheet.shape[1] - _GAP, _HEADER - 8), _LETTERBOX, 1)


def _write_png(path: Path, sheet: np.ndarray) -> Path:
    encoded, data = cv2.imencode('.png', sheet)
    if not encoded:
        raise OSError(f'could not encode {path}')
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'{path.name}.tmp')
    temporary.write_bytes(data.tobytes())
    os.replace(temporary, path)
    return path
