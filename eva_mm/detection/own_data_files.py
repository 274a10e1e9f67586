"""Finding annotations and images of a data set in COCO format, and splitting one that has no split.

Folders are searched by the layouts that data sets and labelling tools commonly have; see
``docs/own_data.md`` for the list.
"""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from eva_mm.errors import InputError, MissingFileError

# Groups of file patterns, the surest first; '{}' is 'train' or 'val'. Within a group there should
# be one file.
_BY_ROLE = (
    ('annotations/instances_{}*.json', 'instances_{}*.json', '{}*/_annotations.coco.json'),
    ('annotations/{}*.json', '{}*.json', '{}*/*.json'),
    ('annotations/*_{}*.json', '*_{}*.json'),
)
_SINGLE = (
    (
        'annotations.json',
        'instances.json',
        '_annotations.coco.json',
        'annotations/instances*.json',
        'annotations/annotations.json',
    ),
    ('*.json', 'annotations/*.json'),
)
_SHOWN = 12  # names of files in a message
_SAMPLED = 20  # images that are looked for in a folder


def find_annotations(root: Path, role: str, other: Iterable[Path] = ()) -> Path | None:
    """Annotation file of one role.

    Args:
        root: folder of the data set.
        role: ``'train'``, ``'val'`` or ``'single'`` (a file of all images).
        other: files that are known to be something else.

    Returns:
        None when there is none.

    Raises:
        InputError: several could be meant.
    """
    groups = _SINGLE if role == 'single' else _BY_ROLE
    other = {path.resolve() for path in other}
    if role == 'single':
        other |= _of_other_roles(root)
    for group in groups:
        fitting = {path for pattern in group for path in root.glob(pattern.format(role))}
        found = sorted(path for path in fitting if path.resolve() not in other)
        if len(found) > 1:
            part = 'train' if role == 'single' else role
            raise InputError(
                f'{root}: which annotation file is meant for {part}? Found '
                f'{_names(root, found)}; name it: own_data.{part}_ann=FILE'
            )
        if found:
            return found[0]
    return None


def _of_other_roles(root: Path) -> set[Path]:
    patterns = [pattern for group in _BY_ROLE for pattern in group]
    roles = ('train', 'val', 'test')
    found = {path for role in roles for p in patterns for path in root.glob(p.format(role))}
    return {path.resolve() for path in found}


def no_annotations(root: Path) -> InputError:
    """What to say of a folder in which no annotation file of training images was found."""
    files = sorted([*root.glob('*.json'), *root.glob('*/*.json')])
    seen = files or sorted(root.iterdir())
    return MissingFileError(
        f'{root}: no annotation file of training images in COCO format (looked for '
        f'annotations/instances_train*.json, annotations/train.json, '
        f'train/_annotations.coco.json, annotations.json, instances.json). Found '
        f'{_names(root, seen) or "nothing"}; name it: own_data.train_ann=FILE'
    )


def _names(root: Path, paths: Iterable[Path]) -> str:
    names = [path.relative_to(root).as_posix() for path in paths]
    more = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
    return ', '.join(names[:_SHOWN]) + more


def named_path(root: Path, path: str, option: str) -> Path:
    """A file or folder that an option names, relative to the data set or to where we are.

    Raises:
        FileNotFoundError: it is in neither place.
    """
    for candidate in (root / path, Path(path)):
        if candidate.exists():
            return candidate
    raise MissingFileError(f'{option}={path}: neither {root / path} nor {path} exists')


def find_images(root: Path, ann_file: Path, data: dict, role: str) -> Path:
    """Folder that the ``file_name`` of images are relative to.

    Folders named by the role come first, then those of the whole data set, then any folder below
    it; the first that holds all of a sample of the images is taken.

    Args:
        root: folder of the data set.
        ann_file: where ``data`` was read from; images often lie beside it.
        data: content of an annotation file.
        role: ``'train'`` or ``'val'``.

    Raises:
        InputError: no folder holds the sample, or two hold different files of these names.
    """
    names = [image['file_name'] for image in data['images']]
    names = names[:: max(1, len(names) // _SAMPLED)][:_SAMPLED]
    counts: dict[Path, int] = {}
    for folders in _image_folders(root, ann_file, role):
        for folder in folders:
            if folder.is_dir() and folder not in counts:
                counts[folder] = sum((folder / name).is_file() for name in names)
        whole = [folder for folder in folders if counts.get(folder) == len(names)]
        different = {os.path.realpath(folder / names[0]): folder for folder in reversed(whole)}
        if len(different) > 1:
            raise InputError(
                f'{ann_file}: images of these names are in several folders, '
                f'{_names(root, sorted(different.values()))}; name the one that is meant: '
                f'own_data.{role}_images=FOLDER'
            )
        if whole:
            return whole[0]
    ranked = sorted(counts.items(), key=lambda pair: -pair[1])[:3]
    best = ', '.join(f'{count} in {folder}' for folder, count in ranked)
    likeliest = ranked[0][0] if ranked else root
    absent = next(name for name in names if not (likeliest / name).is_file())
    raise MissingFileError(
        f'{ann_file}: images were not found below {root} (of {len(names)} looked for: {best}; '
        f'{absent} is not in {likeliest}); name their folder: own_data.{role}_images=FOLDER'
    )


def missing_images(folder: Path, names: Iterable[str]) -> list[str]:
    """Names, relative to a folder, of which there is no file; each folder is listed once."""
    listed: dict[Path, set[str]] = {}
    missing = []
    for name in names:
        path = folder / name
        if path.parent not in listed:
            there = path.parent.is_dir()
            listed[path.parent] = set(os.listdir(path.parent)) if there else set()
        if path.name not in listed[path.parent]:
            missing.append(name)
    return missing


def _image_folders(root: Path, ann_file: Path, role: str) -> Iterator[list[Path]]:
    """Groups of folders where images may lie, the likeliest first; listed as they are asked for."""
    beside = ann_file.parent
    own = [] if beside == root or beside.name == 'annotations' else [beside, beside / 'images']
    for pattern in ('{}*', '{}*/images', 'images/{}*', 'data/{}*', '*_{}', '*-{}'):
        own += sorted(root.glob(pattern.format(role)))
    yield own
    yield [root / 'images', root]
    yield _folders_in(root) + _folders_in(root / 'images')


def _folders_in(folder: Path) -> list[Path]:
    """Sorted; by one listing, as there may be a hundred thousand images beside them."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.is_dir())


def split(data: dict, fraction: float, seed: int) -> tuple[dict, dict]:
    """Splits a data set by image.

    Images come in the order of a hash of their name and the seed, so that the parts depend on
    neither the order in the file nor the machine, and change little when images are added. An image
    goes into the validation part only while each of its classes keeps another image for training.
    The copies of an image that Roboflow exports (``x_jpg.rf.<hash>.jpg``) are one image.

    Args:
        data: content of an annotation file; left unchanged.
        fraction: of the images with an instance and of those without, for validation.
        seed: any integer.

    Returns:
        The training and the validation part; of each image all copies are in one of them.

    Raises:
        InputError: there are fewer than two images, or none with an instance can be spared.
    """
    by_source = defaultdict(set)
    for image in data['images']:
        by_source[_source(image)].add(image['id'])
    if len(by_source) < 2:
        raise InputError(
            f'{len(by_source)} image cannot be split; name a file: own_data.val_ann=FILE'
        )
    order = sorted(by_source, key=lambda name: hashlib.sha1(f'{seed}:{name}'.encode()).digest())
    classes = _classes_by_source(data)
    chosen = _spared([name for name in order if name in classes], classes, fraction)
    if not chosen:
        raise InputError(
            'cannot be split: each image with an instance is the only one of some class; name a '
            'file: own_data.val_ann=FILE'
        )
    empty = [name for name in order if name not in classes]
    chosen += empty[: round(fraction * len(empty))]
    held = {i for name in chosen for i in by_source[name]}
    return _part(data, held, inside=False), _part(data, held, inside=True)


def _source(image: dict) -> str:
    """What the copies of an image have in common: the name that Roboflow puts a hash behind."""
    folder, name = os.path.split(os.path.normpath(image['file_name']))
    return os.path.join(folder, name.partition('.rf.')[0] if '.rf.' in name else name)


def _spared(order: list[str], classes: dict[str, set], fraction: float) -> list[str]:
    """The first images without which each class is still trained on, one at least if any."""
    left = Counter(category for found in classes.values() for category in found)
    wanted = max(1, round(fraction * len(order)))
    chosen: list[str] = []
    for name in order:
        if len(chosen) < wanted and all(left[category] > 1 for category in classes[name]):
            chosen.append(name)
            left.subtract(classes[name])
    return chosen


def _classes_by_source(data: dict) -> dict[str, set]:
    """Classes of the instances of each image that a training would learn from."""
    names = {image['id']: _source(image) for image in data['images']}
    classes = defaultdict(set)
    for entry in data['annotations']:
        crowd = entry.get('iscrowd') or entry.get('ignore')
        if entry['image_id'] in names and not crowd:
            classes[names[entry['image_id']]].add(entry['category_id'])
    return classes


def _part(data: dict, held: set, inside: bool) -> dict:
    # Annotations of unknown images stay in the training part, where the data set reports them.
    return dict(
        data,
        images=[image for image in data['images'] if (image['id'] in held) == inside],
        annotations=[a for a in data['annotations'] if (a['image_id'] in held) == inside],
    )
