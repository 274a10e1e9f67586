"""Which categories a detector takes for one another, from saved results; for LVIS's 1203 too."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pycocotools import mask as mask_utils

from eva_mm.engine.curves import new_figure, plain_text, write_figure

from .image_ap import read_both

NOTHING = '(nothing)'


class Confusions(NamedTuple):
    """Counts of matched boxes.

    Attributes:
        names: K categories by ascending id.
        counts: (K + 1, K + 1) int64; rows are annotated, columns predicted. The last column counts
            annotations that nothing matched, the last row detections that matched nothing.
        totals: (K + 1,) int64; of each row, categories that were left out included.
    """

    names: list[str]
    counts: np.ndarray
    totals: np.ndarray

    def worst(self, limit: int) -> list[tuple[str, str, int, float]]:
        """The most frequent errors but those against nothing: annotated, predicted, count, share.

        The share is that of the annotations of the category.
        """
        errors = self.counts[:-1, :-1].copy()
        np.fill_diagonal(errors, 0)
        order = np.argsort(errors, axis=None, kind='stable')[::-1][:limit]
        rows, columns = np.unravel_index(order, errors.shape)
        return [
            (self.names[r], self.names[c], int(errors[r, c]), float(errors[r, c] / self.totals[r]))
            for r, c in zip(rows, columns)
            if errors[r, c]
        ]

    def most_confused(self, limit: int) -> Confusions:
        """The ``limit`` categories with most errors among one another, the others left out."""
        errors = self.counts[:-1, :-1].copy()
        np.fill_diagonal(errors, 0)
        kept = np.sort(np.argsort(-(errors.sum(0) + errors.sum(1)), kind='stable')[:limit])
        rows = np.append(kept, len(self.names))
        names = [self.names[i] for i in kept]
        return Confusions(names, self.counts[np.ix_(rows, rows)], self.totals[rows])


def count_confusions(
    annotations: str, results: str, score_thr: float = 0.3, iou_thr: float = 0.5
) -> Confusions:
    """Match the boxes of saved results with annotated ones, whatever their categories.

    A detection takes the free annotation of its image that it overlaps most, best scores first.
    One that finds none is counted against nothing, unless it lies in a crowd region. Where its
    category is not exhaustively annotated or not judged in the image (LVIS), so that nobody could
    know better, it takes annotations of its own category alone, or counts for nothing.

    Args:
        annotations: COCO or LVIS annotation file.
        results: JSON list in COCO's results format with boxes.
        score_thr: Detections below it are left out.
        iou_thr: Least overlap of a match.

    Raises:
        InputError: A file is missing or wrong, or one of the two holds no boxes.
    """
    data, truth, found = read_both(annotations, results, 'bbox')
    categories = sorted(data['categories'], key=lambda entry: entry['id'])
    index = {entry['id']: i for i, entry in enumerate(categories)}
    counts = np.zeros((len(index) + 1, len(index) + 1), np.int64)
    for image in data['images']:
        sure = [record for record in found[image['id']] if record['score'] >= score_thr]
        for annotated, predicted in _match(image, truth[image['id']], sure, iou_thr):
            counts[index.get(annotated, -1), index.get(predicted, -1)] += 1
    return Confusions([entry['name'] for entry in categories], counts, counts.sum(1))


def _match(image: dict, truth: list[dict], found: list[dict], iou_thr: float):
    """Yields (annotated, predicted) category ids of an image, None for nothing."""
    found = sorted(found, key=lambda record: -record['score'])
    crowd = np.array([entry.get('iscrowd', 0) for entry in truth], bool)
    free = ~crowd
    categories = np.array([entry['category_id'] for entry in truth])
    overlaps = np.zeros((len(found), len(truth)))
    if found and truth:
        overlaps = mask_utils.iou(
            np.array([record['bbox'] for record in found], float),
            np.array([entry['bbox'] for entry in truth], float),
            crowd.astype(int).tolist(),
        )
    for record, row in zip(found, overlaps):
        judged = _is_judged(image, truth, record)
        open_to = free if judged else free & (categories == record['category_id'])
        best = int(np.argmax(np.where(open_to, row, -1))) if open_to.any() else -1
        if best >= 0 and row[best] >= iou_thr:
            free[best] = False
            yield truth[best]['category_id'], record['category_id']
        elif judged and not (row[crowd] >= iou_thr).any():
            yield None, record['category_id']
    for entry, missed in zip(truth, free):
        if missed:
            yield entry['category_id'], None


def _is_judged(image: dict, truth: list[dict], record: dict) -> bool:
    """Whether the annotations tell that there is no such thing; those of COCO always do."""
    if 'neg_category_ids' not in image:
        return True
    category = record['category_id']
    if category in image['not_exhaustive_category_ids']:
        return False
    return category in image['neg_category_ids'] or any(
        entry['category_id'] == category for entry in truth
    )


def draw_confusions(confusions: Confusions, out: str | os.PathLike, limit: int = 30) -> Path:
    """Draw the matrix of the most confused categories, in percent of each one's annotations.

    Args:
        confusions: From :func:`count_confusions`.
        out: PNG to write.
        limit: Categories that are drawn.
    """
    drawn = confusions.most_confused(limit)
    names = [plain_text(name) for name in (*drawn.names, NOTHING)]
    # Detections of nothing have no annotations to be a share of: of all such detections.
    percent = 100 * drawn.counts / np.maximum(drawn.totals, 1)[:, None]
    side = 2.5 + 0.34 * len(names)
    figure = new_figure(side + 0.8, side)
    axes = figure.subplots()
    image = axes.imshow(percent, cmap='Blues', vmin=0, vmax=100)
    figure.colorbar(image, ax=axes, label='percent of the row', shrink=0.7)
    axes.set(xlabel='predicted', ylabel='annotated')
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    for (row, column), value in np.ndenumerate(percent):
        if drawn.counts[row, column]:
            colour = 'white' if value > 50 else 'black'
            axes.text(column, row, f'{value:.0f}', ha='center', va='center', size=7, color=colour)
    return write_figure(figure, Path(out))
