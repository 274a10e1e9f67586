"""ImageNet's variants: their data, which classes count, and one table for all of them.

Which classes count and how images are cut follows the published evaluation:
github.com/baaivision/EVA, EVA-01/eva/datasets.py, run_class_finetuning.py and README.md.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import DATASETS, METRICS, init_default_scope
from mmengine.runner import Runner

from eva_mm.engine.image_data import ImageDataset, PathList
from eva_mm.engine.launch import build_runner
from eva_mm.engine.saving import write_whole
from eva_mm.errors import InputError, MissingFileError, UnreadableFileError, UsageError

from .datasets import ClassificationImages, check_classes, read_classes
from .metrics import ClassificationMetric, class_ranks

# Subsets of ImageNet-1K whose classes timm ships.
SUBSETS = ('imagenet-a', 'imagenet-r')
_IMAGENET = 'imagenet-1k'
_METRICS = ('top1', 'top5', 'loss')
# Of ObjectNet, in the folder `mappings` that it ships with.
_OBJECTNET_FILES = (
    'folder_to_objectnet_label.json',
    'objectnet_to_imagenet_1k.json',
    'pytorch_to_imagenet_2012_id.json',
    'imagenet_to_label_2012_v2',
)


def _of_timm(file: str) -> str:
    return (resources.files('timm.data') / '_info' / file).read_text(encoding='utf-8')


# ---------------------------------------------------------------------------------------- data


@DATASETS.register_module()
class NumberedImages(ClassificationImages):
    """Folders named by class numbers, ``ROOT/0/...`` to ``ROOT/999/...``, as in ImageNetV2.

    Args:
        data_root: folder of the class folders.
        num_classes: of them.
        **kwargs: see :class:`ClassificationImages`.
    """

    def __init__(self, data_root: str, num_classes: int = 1000, **kwargs: Any) -> None:
        super().__init__(data_root, classes=[str(i) for i in range(num_classes)], **kwargs)


@DATASETS.register_module()
class SubsetImages(ClassificationImages):
    """Folders of some of the classes, among which alone a model is to choose.

    Labels are numbers of all of ``classes``, the model's outputs; ``metainfo['subset']`` tells
    :class:`SubsetMetric` which of them count.

    Args:
        data_root: folder of the class folders: all of ``subset``, and no others.
        subset: 'imagenet-a' or 'imagenet-r' (200 classes each), a text file with a class per
            line, or the names themselves.
        classes: see :func:`~eva_mm.classification.datasets.read_classes`.
        **kwargs: see :class:`ClassificationImages`.

    Raises:
        InputError: class folders are missing or there besides, or a class of ``subset`` is none
            of ``classes``.
    """

    def __init__(
        self,
        data_root: str,
        subset: str | Sequence[str],
        classes: str | Sequence[str] = _IMAGENET,
        **kwargs: Any,
    ) -> None:
        super().__init__(data_root, classes=classes, require_all=False, **kwargs)
        names = subset_classes(subset)
        number = {name: index for index, name in enumerate(self._classes)}
        if unknown := [name for name in names if name not in number]:
            raise InputError(f'subset: {unknown[0]!r} is none of the {len(number)} classes')
        present = {label for images in self.lists for label in np.unique(images.labels).tolist()}
        check_classes([self._classes[label] for label in present], names, data_root)
        self._metainfo['subset'] = tuple(number[name] for name in names)


def subset_classes(subset: str | Sequence[str]) -> tuple[str, ...]:
    """Names of a subset's classes, in the order of its own outputs; see :class:`SubsetImages`."""
    if isinstance(subset, str) and subset in SUBSETS:
        return tuple(_of_timm(f'{subset.replace("-", "_")}_synsets.txt').split())
    return read_classes(subset)


@DATASETS.register_module()
class RealImages(ClassificationImages):
    """ImageNet's validation images with the reassessed labels of arXiv 2006.07159 beside.

    ``metainfo['real_labels']`` holds the valid labels by the images' file names; an image may
    have several or none.

    Args:
        data_root: folder of the class folders.
        real_labels: JSON file with a list of labels per image, images in the order of their file
            names (``real.json`` of github.com/google-research/reassessed-imagenet); by default
            the one that timm ships.
        classes: see :func:`~eva_mm.classification.datasets.read_classes`.
        **kwargs: see :class:`ClassificationImages`.

    Raises:
        InputError: another number of images than of lists, a label out of range, or two images
            of one name.
    """

    def __init__(
        self,
        data_root: str,
        real_labels: str | None = None,
        classes: str | Sequence[str] = _IMAGENET,
        **kwargs: Any,
    ) -> None:
        super().__init__(data_root, classes=classes, **kwargs)
        source = real_labels or "timm's list"
        labels = read_real_labels(real_labels, len(self._classes))
        names = sorted(
            os.path.basename(images.relative(index))
            for images in self.lists
            for index in range(len(images))
        )
        if len(names) != len(labels):
            raise InputError(
                f'{source} has labels of {len(labels)} images, but {data_root} holds {len(names)}'
            )
        if len(set(names)) < len(names):
            twice = next(a for a, b in zip(names, names[1:]) if a == b)
            raise InputError(f'{data_root}: two images are called {twice}, expected unique names')
        self._metainfo['real_labels'] = dict(zip(names, labels))


def read_real_labels(path: str | None, num_classes: int) -> list[tuple[int, ...]]:
    """Valid labels of each image; see :class:`RealImages`."""
    content = _read_json(path) if path else json.loads(_of_timm('imagenet_real_labels.json'))
    if not isinstance(content, list) or not all(isinstance(row, list) for row in content):
        raise InputError(f'{path}: expected a list with a list of labels per image')
    for index, row in enumerate(content):
        wrong = [x for x in row if type(x) is not int or not 0 <= x < num_classes]
        if wrong:
            raise InputError(
                f'{path}: image {index} has label {wrong[0]!r}, expected 0 to {num_classes - 1}'
            )
    return [tuple(row) for row in content]


def _read_json(path: str | os.PathLike) -> Any:
    try:
        with open(path, encoding='utf-8') as file:
            return json.load(file)
    except FileNotFoundError as error:
        raise MissingFileError(f'file not found: {path}') from error
    except OSError as error:
        raise UnreadableFileError(f'cannot read {path}: {error}') from error
    except ValueError as error:
        raise InputError(f'{path} is no JSON: {error}') from error


class ObjectNetMapping(NamedTuple):
    """What ObjectNet's folders mean.

    Attributes:
        folders: all, also those of classes that ImageNet lacks.
        labels: folder -> numbers of the ImageNet classes it stands for, the first one first.
        names: folder -> name of the object.
    """

    folders: tuple[str, ...]
    labels: dict[str, tuple[int, ...]]
    names: dict[str, str]


def read_objectnet_mapping(folder: str | os.PathLike) -> ObjectNetMapping:
    """Read the four files of ObjectNet's folder ``mappings``.

    Raises:
        MissingFileError: one of them is not there.
        InputError: they contradict one another.
    """
    paths = [Path(folder, name) for name in _OBJECTNET_FILES]
    folders, imagenet_names, ids = map(_read_json, paths[:3])
    try:
        lines = paths[3].read_text(encoding='utf-8').splitlines()
    except FileNotFoundError as error:
        raise MissingFileError(f'file not found: {paths[3]}') from error
    try:
        # Class numbers are those of sorted WordNet ids; the lines are in another order.
        number_of = {line: int(label) for label, line in ids.items()}
        numbers = {name.strip(): number_of[line] for line, name in enumerate(lines)}
        folder_of = {name: folder for folder, name in folders.items()}
        labels = {
            folder_of[name]: tuple(numbers[part] for part in parts.split('; '))
            for name, parts in imagenet_names.items()
        }
    except (KeyError, ValueError, AttributeError) as error:
        raise InputError(f'files of {folder} contradict one another: no entry {error}') from error
    return ObjectNetMapping(tuple(folders), labels, folders)


@DATASETS.register_module()
class ObjectNetImages(ClassificationImages):
    """The part of ObjectNet whose classes ImageNet has (113 of 313).

    As published, an image's label is the first of the ImageNet classes that its folder stands
    for, and a model chooses among all of ImageNet's.

    Args:
        data_root: folder that holds ``images`` and ``mappings``.
        own_classes: number ObjectNet's own classes instead, by the folders' sorted names;
            ``metainfo['class_texts']`` has their names in lower case. For models that take any
            class names.
        **kwargs: see :class:`ClassificationImages`.

    Raises:
        MissingFileError: ``images`` or a file of ``mappings`` is not there.
        InputError: folders are missing, or are none of ObjectNet's.
    """

    def __init__(self, data_root: str, own_classes: bool = False, **kwargs: Any) -> None:
        self.mapping = read_objectnet_mapping(Path(data_root, 'mappings'))
        self.own_classes = own_classes
        classes = None if own_classes else _IMAGENET
        super().__init__(os.path.join(data_root, 'images'), classes=classes, **kwargs)
        if own_classes:
            self._metainfo['class_texts'] = self._classes

    def load_lists(
        self, data_root: str | Sequence[str], ann_file: str | Sequence[str]
    ) -> list[PathList]:
        """Find the images of the mapped folders, with their labels."""
        lists = ImageDataset.load_lists(self, data_root, ann_file)
        mapped = sorted(self.mapping.labels)
        if self.own_classes:
            labels = {folder: index for index, folder in enumerate(mapped)}
            self._classes = tuple(self.mapping.names[folder].lower() for folder in mapped)
        else:
            labels = {folder: numbers[0] for folder, numbers in self.mapping.labels.items()}
            self._classes = self._expected
        return [self._mapped(images, labels) for images in lists]

    def _mapped(self, images: PathList, labels: Mapping[str, int]) -> PathList:
        rows = [(os.fsdecode(line.split(b'/')[0]), line) for line in images.names.splitlines()]
        found = {folder for folder, _ in rows}
        check_classes(found, self.mapping.folders, images.root, require_all=False)
        check_classes(found & labels.keys(), list(labels), images.root)
        kept = [(labels[folder], line) for folder, line in rows if folder in labels]
        names = b''.join(line + b'\n' for _, line in kept)
        return PathList(images.root, names, np.array([label for label, _ in kept], np.int64))


# ------------------------------------------------------------------------------------- metrics


@METRICS.register_module()
class SubsetMetric(ClassificationMetric):
    """:class:`ClassificationMetric` of a model that may choose among some of its outputs only.

    Which, the data set tells (:class:`SubsetImages`). Equals a model whose head has these rows
    alone, as published.
    """

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """See the base class; labels are numbers of all outputs."""
        subset = list(self.dataset_meta['subset'])
        outputs = len(data_samples[0]['logits'])
        if max(subset) >= outputs:
            raise InputError(
                f'the data set counts class {max(subset)}, but the model has {outputs} outputs'
            )
        place = {number: index for index, number in enumerate(subset)}
        data_samples = [
            dict(sample, logits=sample['logits'][subset], label=place[int(sample['label'])])
            for sample in data_samples
        ]
        super().process(data_batch, data_samples)


@METRICS.register_module()
class RealLabelsMetric(ClassificationMetric):
    """Accuracy by several valid labels per image; those without any are left out.

    The labels come with :class:`RealImages`. As published, the loss is that of the original
    labels, over all images.
    """

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """See the base class; samples need their ``img_path``."""
        start = len(self.results)
        super().process(data_batch, data_samples)
        for index, sample in enumerate(data_samples, start):
            self.results[index] = (self._rank(sample), *self.results[index][1:])

    def _rank(self, sample: dict) -> int:
        """Of the best valid label, from 0; -1 if there is none."""
        valid = self.dataset_meta['real_labels'][os.path.basename(sample['img_path'])]
        ranks = class_ranks(sample['logits'].float()[None])[0].tolist()
        return min((ranks[label] for label in valid), default=-1)

    def compute_metrics(self, results: list[tuple[int, float, int]]) -> dict[str, float]:
        """Rank (or -1), loss and number of classes per image -> means."""
        judged = [result for result in results if result[0] >= 0]
        if not judged:
            raise InputError('no image has a valid label')
        losses = [loss for _, loss, _ in results]
        return {**super().compute_metrics(judged), 'loss': float(np.mean(losses))}


# ----------------------------------------------------------------------------------- the table


class Row(NamedTuple):
    """A line of the table.

    Attributes:
        title: of the data set.
        images: their number.
        here: metric -> value, in percent but for the loss.
        published: the same as published; may lack some.
    """

    title: str
    images: int
    here: dict[str, float]
    published: dict[str, float]


def evaluate_variants(cfg: Config, names: str) -> str:
    """Evaluate a checkpoint on variants; what ``tools/test.py --variants`` does.

    The model is built and loaded once. Of 'all', data that are not there are told of, and the rest
    runs; data that are there are all looked at before the first image is computed.

    Args:
        cfg: of a test, with ``load_from``. Its ``variants.sets`` maps the name of a variant to
            ``title``, ``layout`` (what its folders should look like), ``dataset``, and
            optionally ``evaluator``, ``published``, and options for the test pipeline's
            ``TimmTransform``: ``interpolation`` and ``crop_border_pixels``.
        names: 'all', or names separated by commas.

    Returns:
        The table, as it is printed; ``variants.json`` in the work dir has the same numbers.

    Raises:
        UsageError: an unknown name, or data of a name are not there, or with 'all' none.
        InputError: a data set is there but not as it should be.
    """
    sets = _chosen(cfg, names)
    present = {k: v for k, v in sets.items() if os.path.isdir(v.dataset.data_root)}
    absent = _describe_absent(v for k, v in sets.items() if k not in present)
    if absent and (names != 'all' or not present):
        raise UsageError(f'--variants {names}: data are not there\n{absent}')
    if absent:
        print_log(absent, 'current', level=30)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    datasets = {name: _build_dataset(cfg, spec) for name, spec in present.items()}
    runner, rows = None, {}
    for name, spec in present.items():
        loader = _loader_of(cfg, datasets.pop(name))
        evaluator = spec.get('evaluator', cfg.test_evaluator)
        if runner is None:
            runner = build_runner(cfg)
        rows[name] = _evaluate(runner, cfg, spec, loader, evaluator)
    if is_main_process():
        _write(rows, os.path.join(cfg.work_dir, 'variants.json'), str(cfg.load_from))
    return '\n\n'.join(filter(None, [format_table(rows.values(), cfg.variants), absent]))


def _chosen(cfg: Config, names: str) -> dict[str, ConfigDict]:
    sets = cfg.variants.sets
    if names == 'all':
        return dict(sets)
    wanted = [name.strip() for name in names.split(',')]
    for name in wanted:
        if name not in sets:
            raise UsageError(f'--variants takes all or some of {",".join(sets)}, not {name!r}')
    return {name: sets[name] for name in dict.fromkeys(wanted)}


def _describe_absent(specs: Any) -> str:
    lines = [f'  {s.title}: no folder {s.dataset.data_root}; expected {s.layout}' for s in specs]
    return '\n'.join(['data that are not there:', *lines]) if lines else ''


def _build_dataset(cfg: Config, spec: ConfigDict) -> ClassificationImages:
    """The variant's data with the transforms of the config's own test."""
    pipeline = copy.deepcopy(cfg.test_dataloader.dataset.pipeline)
    options = {k: spec[k] for k in ('interpolation', 'crop_border_pixels') if k in spec}
    for step in pipeline:
        if step.type == 'TimmTransform':
            step.update(options)
    return DATASETS.build(dict(spec.dataset, pipeline=pipeline, test_mode=True))


def _loader_of(cfg: Config, dataset: ClassificationImages) -> dict:
    loader = {k: v for k, v in cfg.test_dataloader.items() if k != 'dataset'}
    # Workers of a loader that is done with would stay until the end.
    return dict(loader, dataset=dataset, persistent_workers=False)


def _evaluate(runner: Runner, cfg: Config, spec: ConfigDict, loader: dict, evaluator: Any) -> Row:
    """Run the runner's test on other data; see :func:`evaluate_variants`."""
    dataset = loader['dataset']
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    texts = dataset.metainfo.get('class_texts')
    before = model.classes if texts else None
    if texts:
        model.set_classes(texts)
    print_log(f'{spec.title}: {len(dataset):,} images', 'current')
    # A Runner makes its loop once, of these three; another Runner would load the weights again.
    runner._test_dataloader, runner._test_evaluator = loader, evaluator
    runner._test_loop = cfg.test_cfg
    values = runner.test()
    if texts:
        model.set_classes(before)
    found = {k.rpartition('/')[2]: v for k, v in values.items()}
    here = {key: found[key] for key in _METRICS if key in found}
    return Row(spec.title, len(dataset), here, dict(spec.get('published') or {}))


def _write(rows: Mapping[str, Row], path: str, checkpoint: str) -> None:
    content = dict(checkpoint=checkpoint, variants={k: row._asdict() for k, row in rows.items()})
    text = json.dumps(content, indent=1).encode()
    write_whole(path, lambda file: file.write(text))


def format_table(rows: Sequence[Row], variants: Mapping[str, Any]) -> str:
    """Rows under one another, what was published beside what was measured here.

    Args:
        rows: of the sets.
        variants: of the config; ``published_of`` names the model that was published.
    """
    rows = list(rows)
    width = max(len('data'), *(len(row.title) for row in rows))
    titles = ''.join(f'{_TITLES[key]:>20}' for key in _METRICS)
    pairs = f'{"published":>12}{"here":>8}' * len(_METRICS)
    lines = [f'{"":{width}}{"":>9}{titles}', f'{"data":{width}}{"images":>9}{pairs}']
    for row in rows:
        cells = ''.join(
            f'{_number(row.published.get(key)):>12}{_number(row.here.get(key)):>8}'
            for key in _METRICS
        )
        lines.append(f'{row.title:{width}}{row.images:>9,}{cells}')
    source = variants.get('published_of')
    return '\n'.join(lines + ([f'published: {source}'] if source else []))


_TITLES = dict(top1='top-1 (%)', top5='top-5 (%)', loss='loss')


def _number(value: float | None) -> str:
    return '-' if value is None else f'{value:.3f}'
