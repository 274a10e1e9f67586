"""Inputs, batches, files and errors of inference, with a model that measures brightness."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import eva_mm
from eva_mm.engine import inference
from eva_mm.engine.inference import Source, choose_model, find_sources, infer, run
from eva_mm.errors import InputError, UsageError
from tests.toy_task import config_text

ROOT = Path(__file__).resolve().parents[2]


class Brightness:
    """Gives one result per image, its mean, and draws it inverted."""

    categories = [dict(id=1, name='mean')]

    def __init__(self):
        self.sizes = []

    def load(self, path):
        image = cv2.imread(path)
        if image is None:
            raise OSError('no image')
        return image

    def prepare(self, image):
        if image.shape[0] == 1:
            raise ZeroDivisionError('too thin')
        return image.mean()

    def predict(self, samples):
        self.sizes.append(len(samples))
        return samples

    def records(self, prediction, image_id):
        return [dict(image_id=image_id, category_id=1, score=float(prediction))]

    def draw(self, image, prediction):
        return 255 - image


def gray(level, height=24, width=32):
    return np.full((height, width, 3), level, dtype=np.uint8)


def write_video(path, levels, rate=10):
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), rate, (32, 24))
    assert video.isOpened()
    for level in levels:
        video.write(gray(level))
    video.release()


def read_video(path):
    video = cv2.VideoCapture(str(path))
    frames = []
    while (frame := video.read())[0]:
        frames.append(frame[1])
    return frames, video.get(cv2.CAP_PROP_FPS)


@pytest.fixture
def folder(tmp_path):
    """Two images and a video in two folders, and files that are none."""
    root = tmp_path / 'photos'
    (root / 'summer' / 'sea').mkdir(parents=True)
    cv2.imwrite(str(root / 'a.png'), gray(10))
    cv2.imwrite(str(root / 'summer' / 'sea' / 'a.PNG'), gray(200, 40, 20))
    write_video(root / 'summer' / 'clip.avi', [0, 60, 120, 180, 240])
    (root / 'summer' / 'torn.jpg').write_bytes(b'\xff\xd8\xff')
    (root / 'summer' / 'empty.mp4').write_bytes(b'')
    cv2.imwrite(str(root / 'thin.png'), gray(10, 1, 50))
    (root / 'notes.txt').write_text('no image')
    (root / '._a.png').write_text('of another system')
    return root


def results_of(out):
    table = json.loads((out / 'images.json').read_text())
    return table, json.loads((out / 'results.json').read_text())


def test_folder_with_broken_files(folder, tmp_path, capsys):
    out, model = tmp_path / 'out', Brightness()
    report = run(model, find_sources(str(folder)), out, batch_size=3, info=dict(by='test'))
    table, results = results_of(out)

    assert [row['file_name'] for row in table['images']] == [
        'a.png',
        *(f'summer/clip.avi#{index:06d}' for index in range(5)),
        'summer/sea/a.PNG',
    ]
    assert [row['id'] for row in table['images']] == [1, 2, 3, 4, 5, 6, 7]
    assert table['images'][6] == dict(id=7, file_name='summer/sea/a.PNG', width=20, height=40)
    assert table['images'][2]['video'] == 'summer/clip.avi'
    assert table['images'][2]['frame'] == 1
    assert table['categories'] == Brightness.categories
    assert table['info'] == dict(by='test')
    assert model.sizes == [3, 3, 1]

    assert [r['image_id'] for r in results] == [1, 2, 3, 4, 5, 6, 7]
    assert [r['file_name'] for r in results] == [row['file_name'] for row in table['images']]
    assert results[0]['score'] == 10
    assert np.allclose([r['score'] for r in results[1:6]], [0, 60, 120, 180, 240], atol=6)

    assert report.skipped.keys() == {'summer/torn.jpg', 'summer/empty.mp4', 'thin.png'}
    assert report.skipped['summer/torn.jpg'] == 'no image'
    assert report.skipped['thin.png'] == 'ZeroDivisionError: too thin'
    assert (report.images, report.videos, report.results, report.status) == (7, 1, 7, 3)
    assert 'skipped 3:\n' in report.text()
    assert 'thin.png: ZeroDivisionError: too thin' in report.text()
    assert 'skipped summer/torn.jpg: no image' in capsys.readouterr().err


def test_drawings_keep_names_and_are_whole(folder, tmp_path):
    out = tmp_path / 'out'
    run(Brightness(), find_sources(str(folder)), out, batch_size=4)
    drawn = {p.relative_to(out).as_posix() for p in out.rglob('*') if p.is_file()}
    assert drawn == {
        'images.json',
        'results.json',
        'drawn/a.png',
        'drawn/summer/clip.avi.mp4',
        'drawn/summer/sea/a.PNG',
    }
    assert (cv2.imread(str(out / 'drawn' / 'a.png')) == 245).all()
    frames, rate = read_video(out / 'drawn' / 'summer' / 'clip.avi.mp4')
    assert rate == 10
    assert np.allclose([frame.mean() for frame in frames], [255, 195, 135, 75, 15], atol=8)


def test_without_drawing_there_are_two_files(folder, tmp_path):
    out = tmp_path / 'out'
    run(Brightness(), find_sources(str(folder)), out, draw=False)
    assert {p.name for p in out.iterdir()} == {'images.json', 'results.json'}


def test_formats_that_opencv_cannot_write_become_png(tmp_path, monkeypatch):
    monkeypatch.setattr(cv2, 'haveImageWriter', lambda path: not path.endswith('.bmp'))
    cv2.imwrite(str(tmp_path / 'a.bmp'), gray(5))
    run(Brightness(), find_sources(str(tmp_path)), tmp_path / 'out')
    assert [p.name for p in (tmp_path / 'out' / 'drawn').iterdir()] == ['a.bmp.png']


def test_a_failure_of_the_model_leaves_earlier_results_alone(tmp_path):
    write_video(tmp_path / 'clip.mp4', range(0, 200, 20))
    sources, out = find_sources(str(tmp_path)), tmp_path / 'out'
    run(Brightness(), sources, out)
    before = {p: p.read_bytes() for p in out.rglob('*') if p.is_file()}
    assert len(before) == 3

    class Failing(Brightness):
        def predict(self, samples):
            if len(self.sizes) == 4:
                raise RuntimeError('out of memory')
            return super().predict(samples)

    with pytest.raises(RuntimeError, match='out of memory'):
        run(Failing(), sources, out)
    assert {p: p.read_bytes() for p in out.rglob('*') if p.is_file()} == before


def test_nothing_readable_is_a_failure(tmp_path):
    (tmp_path / 'a.png').write_bytes(b'')
    report = run(Brightness(), find_sources(str(tmp_path)), tmp_path / 'out')
    assert report.status == 1
    assert results_of(tmp_path / 'out')[1] == []


def test_everything_readable_is_a_success(tmp_path):
    cv2.imwrite(str(tmp_path / 'a.png'), gray(5))
    report = run(Brightness(), find_sources(str(tmp_path / 'a.png')), tmp_path / 'out')
    assert report.status == 0
    assert report.text().startswith('1 image, 1 result: ')
    assert 'skipped' not in report.text()


def test_a_video_that_ends_early_is_told_and_kept(tmp_path, monkeypatch):
    write_video(tmp_path / 'clip.mp4', range(10))
    frames = iter(range(6))

    class Torn:
        def __init__(self, path):
            self.video = capture(path)

        def get(self, key):
            return self.video.get(key)

        def read(self):
            return self.video.read() if next(frames, None) is not None else (False, None)

        def release(self):
            self.video.release()

    capture = cv2.VideoCapture
    monkeypatch.setattr(inference.cv2, 'VideoCapture', Torn)
    report = run(Brightness(), find_sources(str(tmp_path)), tmp_path / 'out')
    monkeypatch.undo()
    assert report.skipped == {'clip.mp4': 'only 6 of 10 frames can be read'}
    assert (report.images, report.videos, report.status) == (6, 1, 3)
    assert len(read_video(tmp_path / 'out' / 'drawn' / 'clip.mp4')[0]) == 6


class Clips(Brightness):
    """Looks at a video as a whole: the mean of its first frame."""

    whole_videos = True
    header = ('mean',)

    def load(self, path):
        raise AssertionError('not for whole videos')

    prepare = load

    def load_video(self, path):
        return read_video(path)[0][0].mean()

    def draw(self, path, prediction):
        return super().draw(read_video(path)[0][0], prediction)

    def row(self, prediction):
        return [f'{prediction:.0f}']


def test_whole_videos(folder, tmp_path, capsys):
    write_video(folder / 'bright.mp4', [200, 0])
    report = run(Clips(), find_sources(str(folder)), tmp_path / 'out', batch_size=4)
    assert (report.unit, report.images, report.results, report.status) == ('video', 2, 2, 3)
    assert report.text().startswith('2 videos, 2 results: ')
    pictures = {name for name in report.skipped if not name.endswith('.mp4')}
    assert pictures
    assert all('a picture, but this model takes videos' in report.skipped[p] for p in pictures)
    table = json.loads((tmp_path / 'out' / 'images.json').read_text())
    names = ['bright.mp4', 'summer/clip.avi']
    assert table['images'] == [dict(id=i, file_name=name) for i, name in enumerate(names, 1)]
    rows = (tmp_path / 'out' / 'results.csv').read_text().splitlines()
    assert rows[0] == 'file_name,mean'
    assert abs(int(rows[1].split(',')[1]) - 200) < 4
    drawn = cv2.imread(str(tmp_path / 'out' / 'drawn' / 'bright.mp4.png'))
    assert abs(drawn.mean() - 55) < 4
    assert 'videos' in capsys.readouterr().err


def test_batches_end_at_the_size_or_at_the_pixels():
    source = Source(Path('a'), 'a', False)
    frames = [
        inference.Frame(source, None, np.empty((10, width, 3), np.uint8), None)
        for width in (1, 1, 1, 1, 5, 30, 2)
    ]

    def widths(size, pixels):
        groups = inference.batches(frames, size, pixels)
        return [[frame.image.shape[1] for frame in group] for group in groups]

    assert widths(3, 10**6) == [[1, 1, 1], [1, 5, 30], [2]]
    assert widths(9, 80) == [[1, 1, 1, 1], [5], [30], [2]]
    assert widths(1, 1) == [[1], [1], [1], [1], [5], [30], [2]]


def test_results_of_an_earlier_run_are_no_input(folder):
    out = folder / 'out'
    first = find_sources(str(folder), out)
    run(Brightness(), first, out)
    assert find_sources(str(folder), out) == first
    assert len(find_sources(str(folder))) == len(first) + 3


def test_linked_folders_are_searched_once_and_loops_end(folder, tmp_path):
    other = tmp_path / 'other'
    (other / 'deep').mkdir(parents=True)
    cv2.imwrite(str(other / 'deep' / 'b.png'), gray(5))
    (folder / 'more').symlink_to(other)
    (folder / 'again').symlink_to(folder / 'summer')
    (folder / 'summer' / 'up').symlink_to(folder)
    (other / 'back').symlink_to(folder)
    assert [source.name for source in find_sources(str(folder))] == [
        *('a.png', 'more/deep/b.png', 'summer/clip.avi', 'summer/empty.mp4'),
        *('summer/sea/a.PNG', 'summer/torn.jpg', 'thin.png'),
    ]


@pytest.mark.skipif(sys.platform != 'linux', reason='other systems refuse such names')
@pytest.mark.parametrize('draw', [True, False])
def test_names_that_are_not_utf8_are_skipped(tmp_path, draw):
    """In a process of its own, which OpenCV would end."""
    root = tmp_path / 'in'
    root.mkdir()
    cv2.imwrite(str(root / 'a.png'), gray(5))
    for name in (b'caf\xe9.png', b'caf\xe9.avi'):
        Path(os.fsdecode(os.fsencode(root) + b'/' + name)).write_bytes(
            (root / 'a.png').read_bytes()
        )
    code = f"""
from pathlib import Path
from eva_mm.engine.inference import find_sources, run
from tests.engine.test_inference import Brightness
sources, out = find_sources({str(root)!r}), Path({str(tmp_path / 'out')!r})
report = run(Brightness(), sources, out, draw={draw})
print(report.text(), report.status)
"""
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'caf\\xe9.png: its path is not UTF-8' in done.stdout
    assert 'caf\\xe9.avi: its path is not UTF-8' in done.stdout
    assert done.stdout.endswith(' 3\n')
    assert [row['file_name'] for row in results_of(tmp_path / 'out')[0]['images']] == ['a.png']


def test_a_model_whose_path_is_not_utf8_is_told_in_the_table(tmp_path):
    cv2.imwrite(str(tmp_path / 'a.png'), gray(5))
    info = dict(checkpoint='caf\udce9.pth')
    run(Brightness(), find_sources(str(tmp_path)), tmp_path / 'out', info=info)
    assert results_of(tmp_path / 'out')[0]['info'] == info


@pytest.fixture
def brightness(monkeypatch):
    monkeypatch.setattr(inference, 'choose_model', lambda text: inference.Choice('c', 'k'))
    monkeypatch.setattr(inference, 'build_predictor', lambda *args, **options: Brightness())


@pytest.mark.parametrize('name', ['a.png', 'clip.mp4'])
def test_an_input_is_not_drawn_over(brightness, tmp_path, name):
    (tmp_path / 'drawn').mkdir()
    given = tmp_path / 'drawn' / name
    if name == 'a.png':
        cv2.imwrite(str(given), gray(5))
    else:
        write_video(given, [5, 5])
    before = given.read_bytes()
    with pytest.raises(UsageError, match=f'the drawing of {name} would replace the input .*{name}'):
        infer(str(given), 'x', out=str(tmp_path))
    assert given.read_bytes() == before
    assert not (tmp_path / 'results.json').exists()
    assert infer(str(given), 'x', out=str(tmp_path), draw=False).status == 0


def test_an_input_behind_a_link_is_not_drawn_over(brightness, folder, tmp_path):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'drawn').symlink_to(folder)
    with pytest.raises(UsageError, match=r'the drawing of a\.png would replace'):
        infer(str(folder), 'x', out=str(tmp_path / 'out'))
    assert (cv2.imread(str(folder / 'a.png')) == 10).all()


def test_inputs_of_similar_names_get_folders_of_their_own(brightness, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = [Path('shots.v1'), Path('shots.v2'), Path('a.png'), Path('a.bmp')]
    for path in given:
        if path.name.startswith('shots'):
            path.mkdir()
        cv2.imwrite(str(path / 'b.png' if path.is_dir() else path), gray(5))
    out = [infer(str(path), 'x', draw=False).out for path in given]
    assert out == [Path('work_dirs', 'infer', path.name) for path in given]


def test_a_single_file_goes_by_its_name(folder):
    assert [s.name for s in find_sources(str(folder / 'summer' / 'torn.jpg'))] == ['torn.jpg']
    assert find_sources(str(folder / 'summer' / 'clip.avi'))[0].is_video


def test_inputs_that_are_not_there(tmp_path):
    with pytest.raises(UsageError, match='missing.jpg: no such image, video or folder'):
        find_sources(str(tmp_path / 'missing.jpg'))
    (tmp_path / 'notes.txt').write_text('')
    with pytest.raises(UsageError, match=r'holds no image and no video \(\.jpg '):
        find_sources(str(tmp_path))


# ------------------------------------------------------------------------------------ the model


@pytest.mark.parametrize('name', ['eva_lvis', 'eva://eva_lvis', 'eva_lvis.pth'])
def test_published_names_bring_the_config_that_tests_them(name):
    config = str(eva_mm.config_path('lvis/eva_cascade_1536_test'))
    assert choose_model(name) == (config, 'eva://eva_lvis')


def test_config_and_checkpoint(tmp_path):
    file = tmp_path / 'best.pth'
    file.write_bytes(b'')
    assert choose_model(f'lvis/eva_cascade:{file}') == ('lvis/eva_cascade', str(file))
    assert choose_model('a/b.py:eva://eva_lvis') == ('a/b.py', 'eva://eva_lvis')
    assert choose_model('a.py:https://host/x.pth') == ('a.py', 'https://host/x.pth')
    assert choose_model('C:\\runs\\a.py:eva://eva_lvis') == ('C:\\runs\\a.py', 'eva://eva_lvis')


def test_models_that_cannot_be_found(tmp_path):
    file = tmp_path / 'best.pth'
    file.write_bytes(b'')
    for text, message in {
        str(file): f'a checkpoint needs its config, CONFIG:{file}',
        str(tmp_path / 'none.pth'): 'no such file; expected NAME or CONFIG:CHECKPOINT',
        'configs/lvis/eva_cascade.py': 'a config needs its checkpoint',
        f'lvis/eva_cascade:{tmp_path}/none.pth': 'none.pth not found',
        'eva_psz14to16': 'it has no config to run',
    }.items():
        with pytest.raises(UsageError) as error:
            choose_model(text)
        assert message in str(error.value)
    with pytest.raises(InputError, match="unknown checkpoint 'eva_lvi', did you mean eva_lvis"):
        choose_model('eva_lvi')


def test_configs_of_unknown_tasks_are_refused(tmp_path):
    config = tmp_path / 'toy.py'
    config.write_text(config_text(tmp_path))
    with pytest.raises(UsageError, match="has default_scope 'mmengine'; inference knows mmdet"):
        inference.build_predictor(inference.Choice(str(config), 'eva://eva_lvis'))


def test_wrong_options(tmp_path):
    with pytest.raises(UsageError, match='--batch-size takes'):
        infer(str(tmp_path), 'eva_lvis', batch_size=0)
    with pytest.raises(UsageError, match='--device teapot cannot be used'):
        infer(str(tmp_path), 'eva_lvis', device='teapot')
    with pytest.raises(UsageError, match=r"--out takes a path in UTF-8, not 'caf\\udce9'"):
        infer(str(tmp_path), 'eva_lvis', out='caf\udce9')
    with pytest.raises(UsageError, match='is the input itself'):
        infer(str(tmp_path), 'eva_lvis', out=str(tmp_path))


def test_every_predictor_exists():
    pytest.importorskip('mmdet')
    for dotted in inference.PREDICTORS.values():
        module, _, name = dotted.rpartition('.')
        path = ROOT.joinpath(*module.split('.')).with_suffix('.py')
        assert f'class {name}' in path.read_text()


def test_help_is_quick_and_errors_are_one_line(tmp_path):
    tool = [sys.executable, str(ROOT / 'tools' / 'infer.py')]
    shown = subprocess.run(
        [sys.executable, '-X', 'importtime', *tool[1:], '--help'], capture_output=True, text=True
    )
    assert shown.returncode == 0
    assert '--score-thr' in shown.stdout
    assert '| mmdet' not in shown.stderr
    assert '| torch\n' not in shown.stderr
    wrong = subprocess.run(
        [*tool, str(tmp_path / 'none'), '--model', 'eva_lvis'], capture_output=True, text=True
    )
    assert wrong.returncode == 1
    assert wrong.stderr.strip().splitlines()[-1].startswith('infer.py: ')
    assert 'Traceback' not in wrong.stderr


@pytest.mark.parametrize('left', [0, 1, 2])
def test_a_config_that_takes_its_classes_from_data(tmp_path, left):
    for number in range(left):
        (tmp_path / f'run{number}.py').touch()
    choice = inference.Choice('imagenet/eva_g_finetune', str(tmp_path / 'iter_9.pth'))
    with pytest.raises(UsageError, match='takes its classes from data') as error:
        inference.build_predictor(choice)
    assert (str(tmp_path / 'run0.py') in str(error.value)) == (left == 1)
