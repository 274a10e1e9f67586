"""Run a model on pictures and videos of one's own: what `tools/infer.py` does.

Finding inputs, batches, files and broken inputs are the same for every task and lie here. A task
brings a :class:`Predictor`, which is found by its config (:data:`PREDICTORS`), so that no task
knows of another.
"""

from __future__ import annotations

import csv
import importlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import cv2
import numpy as np
import torch
from mmengine.config import Config
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import eva_mm
from eva_mm.errors import InputError, UnreadableFileError, UsageError
from eva_mm.zoo.table import SCHEME, TASKS, PublishedModel, find_model

from .launch import load_config
from .saving import TEMPORARY, write_whole

# Type of a config's model, or its scope (`default_scope`), which several tasks may share -> class
# that runs it, a `Predictor`. A config with a model of its own names one under `predictor`.
PREDICTORS = {
    'mmdet': 'eva_mm.detection.inference.DetectionPredictor',
    'mmseg': 'eva_mm.segmentation.inference.SegmentationPredictor',
    'EVAClassifier': 'eva_mm.classification.inference.ClassificationPredictor',
    'EVACLIPZeroShot': 'eva_mm.classification.inference.ClassificationPredictor',
    'mmaction': 'eva_mm.video.inference.VideoPredictor',
}

IMAGE_SUFFIXES = (
    '.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.bmp', '.webp', '.tif', '.tiff', '.ppm', '.pgm',
    '.pbm', '.gif',
)  # fmt: skip
VIDEO_SUFFIXES = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg', '.wmv', '.flv')
_CHECKPOINT_SUFFIXES = ('.pth', '.pt', '.safetensors')

# A batch ends here too: many a model gives bitmaps of the image's own size, a hundred per image.
MAX_BATCH_PIXELS = 32_000_000
_DEFAULT_RATE = 25.0  # frames per second of a video that does not tell
_DESCRIBED = 10  # images, in the text that is printed
_CUT_SHORT = 0.95  # of the frames that a video promises; containers are off by a few


class Predictor(Protocol):
    """What a task brings. Images are (H, W, 3) uint8 in BGR order, upright.

    One whose results are a few values per image may also have ``header``, column names, with
    ``row(prediction)``, texts under them, for ``results.csv``; and ``describe(prediction)``, lines
    that are printed while the images are few. One with ``class_map(prediction)``, the class of each
    pixel as (H, W) uint8 or uint16, gets PNG files in ``maps``.

    One that looks at a video as a whole has ``whole_videos = True`` and, in place of :meth:`load`
    and :meth:`prepare`, ``load_video(path)``: what :meth:`predict` takes. :meth:`draw` is then
    given the path and returns a picture of the video, (H, W, 3) uint8 BGR. Pictures are no input.

    Attributes:
        categories: ``[{'id': int, 'name': str}, ...]``, what the records' category ids mean.
    """

    categories: list[dict]

    def load(self, path: str) -> np.ndarray:
        """Read an image file as the config's test pipeline does; any exception means: broken."""

    def prepare(self, image: np.ndarray) -> Any:
        """One image through the rest of the test pipeline."""

    def predict(self, samples: Sequence[Any]) -> list[Any]:
        """A batch of what :meth:`prepare` returned through the model."""

    def records(self, prediction: Any, image_id: int) -> list[dict]:
        """Results of an image as JSON values, each with ``image_id``."""

    def draw(self, image: np.ndarray, prediction: Any) -> np.ndarray:
        """The image with its results drawn; all frames of a video become equally large."""


class Choice(NamedTuple):
    """A config (file or name) and its checkpoint (path, URL or ``eva://`` name)."""

    config: str
    checkpoint: str


class Source(NamedTuple):
    """An input file.

    Attributes:
        path: of the file.
        name: relative to the folder that was given, with ``/``; the file's name otherwise. Bytes
            that are not UTF-8 are written out (``\\xe9``).
        is_video: by its suffix.
    """

    path: Path
    name: str
    is_video: bool

    @property
    def is_utf8(self) -> bool:
        """Whether OpenCV takes the path; it ends the whole process at others."""
        return _is_utf8(self.path)


@dataclass
class Frame:
    """An image on its way through the model; ``index`` counts from 0 in a video, else None.

    A whole video has no ``image``.
    """

    source: Source
    index: int | None
    image: np.ndarray | None
    sample: Any

    @property
    def name(self) -> str:
        """Of the image in the files that are written."""
        return self.source.name if self.index is None else f'{self.source.name}#{self.index:06d}'


@dataclass
class Report:
    """What was done.

    Attributes:
        out: folder that was written.
        images: number of images, frames of videos included.
        videos: number of videos of which at least one frame was read.
        results: number of records.
        skipped: name of a file -> why it, or the rest of it, was left out.
        described: lines about the first images, where the predictor gives some.
        unit: what results are of, 'image' or a whole 'video'; of the latter ``images`` counts.
    """

    out: Path
    images: int = 0
    videos: int = 0
    results: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    described: list[str] = field(default_factory=list)
    unit: str = 'image'

    @property
    def status(self) -> int:
        """Exit status: 0 all done, 1 nothing could be read, 3 some of it was skipped."""
        if not self.skipped:
            return 0
        return 3 if self.images else 1

    def text(self) -> str:
        """Summary in a few lines."""
        of_videos = f' (with all frames of {_count(self.videos, "video")})' if self.videos else ''
        lines = [
            *self.described,
            f'{_count(self.images, self.unit)}{of_videos}, {_count(self.results, "result")}: '
            f'{self.out / "results.json"}, file names and ids in {self.out / "images.json"}',
        ]
        if self.skipped:
            lines.append(f'skipped {len(self.skipped)}:')
            lines += [f'  {name}: {why}' for name, why in self.skipped.items()]
        return '\n'.join(lines)


def _count(number: int, what: str) -> str:
    return f'{number} {what}' + ('' if number == 1 else 's')


# -------------------------------------------------------------------------------- model and config


def choose_model(text: str) -> Choice:
    """Config and checkpoint that `--model` names.

    Args:
        text: a published name (``eva_lvis``, also ``eva://eva_lvis``), which comes with the config
            that tests it as published, or ``CONFIG:CHECKPOINT``.

    Raises:
        UsageError: neither; a checkpoint or config alone; a checkpoint that is not there.
        InputError: no published model of that name (near ones are told).
    """
    if ':' in text and not text.startswith(SCHEME):
        # A drive letter is no config.
        start = 2 if text[1:2] == ':' and text[2:3] in ('\\', '/') else 0
        config, separator, checkpoint = text[start:].partition(':')
        if separator and config and checkpoint:
            if '://' not in checkpoint and not Path(checkpoint).is_file():
                raise UsageError(f'--model {text}: checkpoint {checkpoint} not found')
            return Choice(text[:start] + config, checkpoint)
    if text.endswith('.py'):
        raise UsageError(f'--model {text}: a config needs its checkpoint, {text}:CHECKPOINT')
    if Path(text).is_file():
        raise UsageError(
            f'--model {text}: a checkpoint needs its config, CONFIG:{text} (the run that wrote it '
            'left its config beside it, a .py file)'
        )
    if text.endswith(_CHECKPOINT_SUFFIXES) and '/' in text.removeprefix(SCHEME):
        raise UsageError(f'--model {text}: no such file; expected NAME or CONFIG:CHECKPOINT')
    return _published_choice(find_model(text))


def _published_choice(model: PublishedModel) -> Choice:
    path = model.test_config or model.config
    if path is None:
        raise UsageError(f'--model {model.name}: {model.description}; it has no config to run')
    try:
        config = eva_mm.config_path(path.removeprefix('configs/'))
    except ValueError as error:
        what = TASKS[model.task]
        raise UsageError(f'--model {model.name} ({what}): its config {path} is not here') from error
    return Choice(str(config), SCHEME + model.name)


def build_predictor(
    choice: Choice, cfg_options: Mapping[str, Any] | None = None, **options: Any
) -> Predictor:
    """Build a model for inference.

    Args:
        choice: from :func:`choose_model`.
        cfg_options: dotted key -> value, merged into the config.
        **options: of the task's class: ``device``, ``score_thr``, ``classes``; None leaves the
            choice to the class.

    Raises:
        UsageError: the config is none of a task that is known here, or takes its classes from data
            and was not fitted to any; see also `load_config`.
    """
    cfg: Config = load_config(choice.config, cfg_options)
    _require_fitted(cfg, choice)
    scope, kind = cfg.get('default_scope'), (cfg.get('model') or {}).get('type')
    known = cfg.get('predictor') or PREDICTORS.get(kind) or PREDICTORS.get(scope)
    if known is None:
        raise UsageError(
            f'{choice.config} has default_scope {scope!r}; inference knows '
            f'{", ".join(PREDICTORS)}, or what the config names under predictor; its model is '
            f'{kind}'
        )
    module, _, name = known.rpartition('.')
    given = {key: value for key, value in options.items() if value is not None}
    return getattr(importlib.import_module(module), name)(cfg, choice.checkpoint, **given)


def _require_fitted(cfg: Config, choice: Choice) -> None:
    if 'fit_config' not in cfg or (cfg.get('own_data') or {}).get('fitted_to'):
        return
    saved = sorted(Path(choice.checkpoint).parent.glob('*.py'))
    left = f', {saved[0]}' if len(saved) == 1 else ''
    raise UsageError(
        f'{choice.config} takes its classes from data, of which inference knows nothing: give the '
        f'config that the training left beside its checkpoints{left}'
    )


def check_device(device: str | None) -> None:
    """Refuse a device that torch does not know or this machine lacks.

    Raises:
        UsageError: naming it.
    """
    if device is None:
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f'--device {device} cannot be used: {reason}') from error


# ------------------------------------------------------------------------------------------ inputs


def find_sources(given: str, out: Path | None = None) -> list[Source]:
    """Files to run on.

    Args:
        given: an image, a video, or a folder, which is searched with all folders below.
        out: folder of results; what lies in it is no input.

    Returns:
        Sorted by name. In a folder, files of other kinds and hidden ones are passed over. Links
        to folders are followed; a folder with several names is searched under one of them.

    Raises:
        UsageError: no such file or folder, or a folder with nothing to run on.
    """
    root = Path(given)
    if root.is_file():
        return [_source(root, Path(root.name))]
    if not root.is_dir():
        raise UsageError(f'{given}: no such image, video or folder')
    own = None if out is None else out.resolve()
    if _is_below(root, own):
        raise UsageError(f'--out {out} holds {given}: results need a folder of their own')
    sources = []
    for path in _files_below(root):
        if path.suffix.lower() not in IMAGE_SUFFIXES + VIDEO_SUFFIXES or not path.is_file():
            continue
        if not _is_below(path, own):
            sources.append(_source(path, path.relative_to(root)))
    if not sources:
        known = ' '.join(IMAGE_SUFFIXES + VIDEO_SUFFIXES)
        raise UsageError(f'{given} holds no image and no video ({known})')
    return sorted(sources, key=lambda source: source.name)


def _files_below(root: Path) -> Iterator[Path]:
    """Files that are not hidden, in all folders below; each folder once, as links may be loops."""
    seen, waiting = set(), [str(root)]
    while waiting:  # real folders before links, so that they go by their own names
        for folder, below, files in os.walk(waiting.pop(0)):
            real = os.path.realpath(folder)
            below[:] = () if real in seen else sorted(n for n in below if not n.startswith('.'))
            if real not in seen:
                yield from (Path(folder, name) for name in files if not name.startswith('.'))
            seen.add(real)
            paths = (os.path.join(folder, name) for name in below)
            waiting += [path for path in paths if os.path.islink(path)]


def _source(path: Path, name: Path) -> Source:
    readable = os.fsencode(name.as_posix()).decode(errors='backslashreplace')
    return Source(path, readable, path.suffix.lower() in VIDEO_SUFFIXES)


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_below(path: Path, folder: Path | None) -> bool:
    return folder is not None and path.resolve().is_relative_to(folder)


def number_of_frames(source: Source) -> int:
    """Images in a source: 1, or the frames that a video promises (at least 1)."""
    if not source.is_video or not source.is_utf8:
        return 1
    video = cv2.VideoCapture(str(source.path))
    try:
        return max(int(video.get(cv2.CAP_PROP_FRAME_COUNT)), 1)
    finally:
        video.release()


def read_video(source: Source) -> Iterator[np.ndarray]:
    """Frames of a video, one after the other; OpenCV turns them upright.

    Raises:
        UnreadableFileError: it cannot be opened, has no frame, or ends early.
    """
    video = cv2.VideoCapture(str(source.path))
    try:
        promised, number = video.get(cv2.CAP_PROP_FRAME_COUNT), 0
        while True:
            read, image = video.read()
            if not read:
                break
            number += 1
            yield image
    finally:
        video.release()
    if not number:
        raise UnreadableFileError('no frame can be read; is it a video?')
    if number < _CUT_SHORT * promised:
        raise UnreadableFileError(f'only {number} of {promised:.0f} frames can be read')


def read_frames(
    sources: Iterable[Source], predictor: Predictor, skip: Callable[[Source, Exception], None]
) -> Iterator[Frame]:
    """Images of all sources, ready for the model.

    Args:
        sources: in order.
        predictor: reads and prepares them.
        skip: told of each source that cannot be read (to its end), with the reason.
    """
    for source in sources:
        try:
            if not source.is_utf8:
                raise UnreadableFileError('its path is not UTF-8; rename it')
            if source.is_video:
                images = enumerate(read_video(source))
            else:
                images = iter([(None, predictor.load(str(source.path)))])
            for index, image in images:
                yield Frame(source, index, image, predictor.prepare(image))
        except Exception as error:  # decoders raise anything when fed with garbage
            skip(source, error)


def read_whole_videos(
    sources: Iterable[Source], predictor: Predictor, skip: Callable[[Source, Exception], None]
) -> Iterator[Frame]:
    """Videos for a predictor that looks at them as a whole; as `read_frames`.

    Images are skipped.
    """
    for source in sources:
        try:
            if not source.is_utf8:
                raise UnreadableFileError('its path is not UTF-8; rename it')
            if not source.is_video:
                raise UnreadableFileError('a picture, but this model takes videos')
            yield Frame(source, None, None, predictor.load_video(str(source.path)))
        except Exception as error:  # decoders raise anything when fed with garbage
            skip(source, error)


def batches(
    frames: Iterable[Frame], size: int, max_pixels: int = MAX_BATCH_PIXELS
) -> Iterator[list[Frame]]:
    """Group frames by ``size``; fewer where they have more than ``max_pixels`` together."""
    batch: list[Frame] = []
    pixels = 0
    for frame in frames:
        area = 0 if frame.image is None else frame.image.shape[0] * frame.image.shape[1]
        if batch and pixels + area > max_pixels:
            yield batch
            batch, pixels = [], 0
        batch.append(frame)
        pixels += area
        if len(batch) == size:
            yield batch
            batch, pixels = [], 0
    if batch:
        yield batch


# ----------------------------------------------------------------------------------------- outputs


class RecordFile:
    """A JSON list that is written record by record, under a temporary name until it is whole."""

    def __init__(self, path: Path) -> None:
        self.path, self.number = path, 0
        self._temporary = path.with_name(path.name + TEMPORARY)

    def __enter__(self) -> RecordFile:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._temporary.open('w', encoding='utf-8')
        return self

    def add(self, record: dict) -> None:
        """Append one record."""
        self._file.write(('[' if not self.number else ',\n') + json.dumps(record))
        self.number += 1

    def __exit__(self, kind: type | None, *rest: Any) -> None:
        self._file.write(']' if self.number else '[]')
        self._file.close()
        if kind is None:
            os.replace(self._temporary, self.path)
        else:
            self._temporary.unlink()


class TableFile:
    """A CSV file with a row per image, under a temporary name until it is whole.

    Nothing is written for a predictor that has no ``header``.
    """

    def __init__(self, path: Path, predictor: Predictor) -> None:
        self.path, self.predictor = path, predictor
        self._temporary = path.with_name(path.name + TEMPORARY)
        self._file: IO[str] | None = None

    def __enter__(self) -> TableFile:
        if header := getattr(self.predictor, 'header', None):
            self._file = self._temporary.open('w', encoding='utf-8', newline='')
            self._writer = csv.writer(self._file)
            self._writer.writerow(['file_name', *header])
        return self

    def add(self, name: str, prediction: Any) -> None:
        """Append the row of an image."""
        if self._file is not None:
            self._writer.writerow([name, *self.predictor.row(prediction)])

    def __exit__(self, kind: type | None, *rest: Any) -> None:
        if self._file is None:
            return
        self._file.close()
        if kind is None:
            os.replace(self._temporary, self.path)
        else:
            self._temporary.unlink()


def drawing_of(source: Source, folder: Path, as_picture: bool = False) -> Path:
    """File that a source is drawn to: of its name, with ``.png`` or ``.mp4`` added if need be."""
    path = folder / source.name
    if source.is_video and not as_picture:
        return path if path.suffix == '.mp4' else path.with_name(path.name + '.mp4')
    # By its name alone: OpenCV looks at the suffix, and dies of a folder that is not UTF-8.
    return path if cv2.haveImageWriter(path.name) else path.with_name(path.name + '.png')


def check_drawings(sources: Iterable[Source], folder: Path) -> None:
    """Refuse to draw over an input.

    Raises:
        UsageError: naming it.
    """
    sources = list(sources)
    inputs = {source.path.resolve() for source in sources}
    for source in sources:
        path = drawing_of(source, folder)
        if path.resolve() in inputs:
            raise UsageError(
                f'--out {folder.parent}: the drawing of {source.name} would replace the input '
                f'{path}; take another folder or --no-draw'
            )


class Drawings:
    """Folder of drawn images and videos; frames of a video follow one another in :meth:`add`.

    Images keep their names, with ``.png`` added where OpenCV cannot write the format; videos
    become MP4. Every file has a temporary name until it is whole.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._source: Source | None = None
        self._video: cv2.VideoWriter | None = None

    def __enter__(self) -> Drawings:
        return self

    def add(self, frame: Frame, picture: np.ndarray) -> None:
        """Write a drawn image, or append a frame to its video.

        Raises:
            OSError: the file cannot be written.
        """
        if frame.source != self._source:
            self._finish()
        if frame.index is None:
            # A whole video is drawn as a picture.
            self._write_image(drawing_of(frame.source, self.folder, as_picture=True), picture)
            return
        if self._video is None:
            self._open(frame.source, picture.shape[1::-1])
        self._video.write(np.ascontiguousarray(picture))

    def __exit__(self, kind: type | None, *rest: Any) -> None:
        if kind is None:
            self._finish()
        elif self._video is not None:
            self._video.release()
            self._partial.unlink(missing_ok=True)

    def _write_image(self, path: Path, picture: np.ndarray) -> None:
        done, content = cv2.imencode(path.suffix, picture)
        if not done:
            raise OSError(f'{path} could not be encoded')
        write_whole(str(path), lambda file: file.write(content))

    def _open(self, source: Source, size: tuple[int, int]) -> None:
        self._target = drawing_of(source, self.folder)
        # The suffix tells OpenCV the container, so the temporary name must end in it.
        self._partial = self._target.with_name(f'.{self._target.stem}{TEMPORARY}.mp4')
        self._target.parent.mkdir(parents=True, exist_ok=True)
        rate = _frame_rate(source)
        code = cv2.VideoWriter_fourcc(*'mp4v')
        video = cv2.VideoWriter(str(self._partial), code, rate, size)
        if not video.isOpened():
            raise OSError(f'{self._target}: OpenCV cannot write videos here')
        self._source, self._video = source, video

    def _finish(self) -> None:
        if self._video is None:
            return
        self._video.release()
        self._source = self._video = None
        os.replace(self._partial, self._target)


class Maps:
    """Folder of PNG files of one channel: ``NAME.png`` of an image, ``VIDEO/000012.png`` of frames.

    Nothing is written for a predictor that has no ``class_map``.
    """

    def __init__(self, folder: Path, predictor: Predictor) -> None:
        self.folder = folder
        self._class_map = getattr(predictor, 'class_map', None)

    def add(self, frame: Frame, prediction: Any) -> None:
        """Write the map of an image or a frame, whole or not at all."""
        if self._class_map is None:
            return
        path = self.folder / frame.source.name
        if frame.index is not None:
            path = path / f'{frame.index:06d}'
        content = cv2.imencode('.png', self._class_map(prediction))[1]
        write_whole(f'{path}.png', lambda file: file.write(content))


def _frame_rate(source: Source) -> float:
    video = cv2.VideoCapture(str(source.path))
    try:
        rate = video.get(cv2.CAP_PROP_FPS)
    finally:
        video.release()
    return rate if 0 < rate < 1000 else _DEFAULT_RATE


def _image_row(frame: Frame, image_id: int) -> dict:
    if frame.source.is_video and frame.index is None:
        return dict(id=image_id, file_name=frame.name)
    height, width = frame.image.shape[:2]
    row = dict(id=image_id, file_name=frame.name, width=width, height=height)
    if frame.index is not None:
        row.update(video=frame.source.name, frame=frame.index)
    return row


# ------------------------------------------------------------------------------------------ running


def run(
    predictor: Predictor,
    sources: Sequence[Source],
    out: Path,
    batch_size: int = 1,
    draw: bool = True,
    info: Mapping[str, Any] | None = None,
) -> Report:
    """Run a model on files, and write ``results.json``, ``images.json`` and ``drawn/``.

    Some predictors add ``results.csv`` or ``maps/``.

    Args:
        predictor: the model.
        sources: what to run on, from :func:`find_sources`.
        out: folder to write; files of an earlier run are replaced.
        batch_size: images that go through the model together, also across files.
        draw: whether to draw.
        info: what ``images.json`` is to tell under ``info``.

    Returns:
        What was done. Files that cannot be read are in its ``skipped``, and the run goes on.
    """
    whole_videos = getattr(predictor, 'whole_videos', False)
    report, rows = Report(out, unit='video' if whole_videos else 'image'), []
    read = read_whole_videos if whole_videos else read_frames
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        bar = stack.enter_context(_progress(f'{report.unit}s'))
        total = len(sources) if whole_videos else sum(map(number_of_frames, sources))
        task = bar.add_task('', total=total)
        results = stack.enter_context(RecordFile(out / 'results.json'))
        drawings = stack.enter_context(Drawings(out / 'drawn')) if draw else None
        table = stack.enter_context(TableFile(out / 'results.csv', predictor))
        maps = Maps(out / 'maps', predictor)

        def skip(source: Source, error: Exception) -> None:
            report.skipped[source.name] = _describe(error)
            text = f'skipped {source.name}: {_describe(error)}'
            bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
            bar.advance(task)

        for batch in batches(read(sources, predictor, skip), batch_size):
            predictions = predictor.predict([frame.sample for frame in batch])
            for frame, prediction in zip(batch, predictions):
                rows.append(_image_row(frame, len(rows) + 1))
                for record in predictor.records(prediction, rows[-1]['id']):
                    results.add({**record, 'file_name': frame.name})
                table.add(frame.name, prediction)
                maps.add(frame, prediction)
                if len(rows) <= _DESCRIBED and hasattr(predictor, 'describe'):
                    report.described += [frame.name, *predictor.describe(prediction)]
                if drawings:
                    image = str(frame.source.path) if whole_videos else frame.image
                    drawings.add(frame, predictor.draw(image, prediction))
                bar.advance(task)
    content = dict(
        info=dict(info or {}), images=rows, annotations=[], categories=predictor.categories
    )
    # Options may name files that are not UTF-8; these become escapes of JSON.
    text = json.dumps(content, ensure_ascii=False, indent=1).encode(errors='backslashreplace')
    write_whole(str(out / 'images.json'), lambda file: file.write(text))
    report.images, report.results = len(rows), results.number
    report.videos = len({row['video'] for row in rows if 'video' in row})
    return report


def _progress(what: str) -> Progress:
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(what), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))


def _describe(error: Exception) -> str:
    """One line; the class is told where its message alone would be puzzling."""
    text = re.sub(r' <_io\.BytesIO object at \w+>', '', ' '.join(str(error).split()))
    return text if isinstance(error, (InputError, OSError)) else f'{type(error).__name__}: {text}'


def infer(
    given: str,
    model: str,
    out: str | None = None,
    batch_size: int = 1,
    draw: bool = True,
    device: str | None = None,
    cfg_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Report:
    """Run a model on an image, a video or a folder of both.

    Args:
        given: see :func:`find_sources`.
        model: see :func:`choose_model`.
        out: folder to write; ``work_dirs/infer/NAME`` by default, NAME being the input's, with
            its suffix.
        batch_size: see :func:`run`.
        draw: see :func:`run`.
        device: as torch names it; a GPU if there is one by default.
        cfg_options: dotted key -> value, merged into the config.
        **options: of the task's predictor; detectors: ``score_thr``, ``classes``.

    Returns:
        What was done.

    Raises:
        InputError: of the command line, the config or the checkpoint, before anything is written.
    """
    if batch_size < 1:
        raise UsageError(f'--batch-size takes a number of images, 1 or more, not {batch_size}')
    check_device(device)
    folder = Path(out) if out else Path('work_dirs', 'infer', Path(given).resolve().name)
    if not _is_utf8(folder):
        raise UsageError(f'--out takes a path in UTF-8, not {str(folder)!r}')
    with suppress(OSError):
        if folder.resolve() == Path(given).resolve():
            raise UsageError(f'--out {out} is the input itself; results need a folder of their own')
    sources = find_sources(given, folder)
    if draw:
        check_drawings(sources, folder / 'drawn')
    choice = choose_model(model)
    predictor = build_predictor(choice, cfg_options, device=device, **options)
    info = dict(description='made by eva_mm', config=choice.config, checkpoint=choice.checkpoint)
    for key, value in options.items():
        value = getattr(predictor, key, None) if value is None else value
        if value is not None:
            info[key] = value
    return run(predictor, sources, folder, batch_size, draw, info)
