"""The benchmarks' entry, and what their figures rest on."""

import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks import common
from benchmarks.__main__ import find_benchmarks, main
from benchmarks.measuring import in_child

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """A registered benchmark that takes an option, and a file of results of its own."""
    find_benchmarks()
    path = tmp_path / 'RESULTS.md'
    monkeypatch.setattr('benchmarks.__main__.append', lambda text: common.append(text, path))

    def run(sides=(1, 2)):
        return [common.Table(('side', 'area'), [(s, s * s) for s in sides], 'Squares', ('Exact.',))]

    common.benchmark('toy', 'squares', sides=lambda text: tuple(map(int, text.split(','))))(run)
    yield path
    del common.REGISTRY['toy']


def test_a_run_is_printed_and_appended(toy, capsys):
    assert main(['toy', '--set', 'sides=3,12']) == 0
    assert main(['toy']) == 0
    printed, kept = capsys.readouterr().out, toy.read_text()
    assert kept.count('## toy, ') == 2
    for text in ('| 12   | 144  |', '**Squares**', '* Exact.', 'Python 3', 'python -m benchmarks'):
        assert text in kept
        assert text in printed
    assert kept.index('144') < kept.rindex('## toy')
    assert [file.name for file in toy.parent.iterdir()] == ['RESULTS.md']


def test_nothing_is_kept_on_request(toy):
    main(['toy', '--no-save'])
    assert not toy.exists()


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        ([], 'name a benchmark'),
        (['nothing'], "no benchmark 'nothing'; there are"),
        (['toy', '--set', 'side=3'], r"expected KEY=VALUE with a key of ['sides']"),
        (['toy', '--set', 'sides=x'], 'invalid literal'),
        (
            ['attention', '--set', 'shapes=global-1'],
            "unknown shape 'global-1', expected one",
        ),
        (['vitdet_backbone', '--set', 'sizes=huge'], "unknown ViT size 'huge', expected one of"),
    ],
)
def test_mistakes_are_named(toy, capsys, argv, message):
    with pytest.raises(SystemExit):
        main(argv)
    assert message in capsys.readouterr().err


def test_list_needs_no_host():
    """So that a machine with PyTorch alone can run the benchmarks of the core."""
    code = (
        'import sys\n'
        "for name in ('mmengine', 'mmcv', 'mmdet', 'lvis', 'cv2'): sys.modules[name] = None\n"
        'from benchmarks.__main__ import main\n'
        "main(['--list'])"
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ('evaluation', 'mask_output', 'detector_memory'):
        assert name in done.stdout


def test_peak_counts_what_was_given_back():
    code = """
        from benchmarks import common
        common.reset_peak_rss()
        start = common.rss()
        block = bytearray(b'x') * (64 * common.MIB)
        del block
        assert common.peak_rss() - start > 60 * common.MIB
        common.reset_peak_rss()
        assert common.peak_rss() - common.rss() < 32 * common.MIB
    """
    # In a process of its own: this one may hold as much that it can use anew.
    subprocess.run([sys.executable, '-c', textwrap.dedent(code)], cwd=ROOT, check=True)


def test_evaluators_agree_and_are_compared():
    pytest.importorskip('lvis')
    pytest.importorskip('mmdet')
    from benchmarks.evaluation import evaluation

    (table,) = evaluation(images=4, detections=(60,), kinds=('bbox',))
    assert [row[3] for row in table.rows] == [
        'ours, LVIS', 'lvis-api', 'ours, COCO', 'pycocotools',
    ]  # fmt: skip
    assert all(5 < float(row[-2]) < 95 for row in table.rows)


@pytest.mark.slow
def test_everything_comes_together_and_ours_is_less():
    pytest.importorskip('mmdet')
    from benchmarks.gathering import gathering

    (table,) = gathering(images=5, detections=(100,))
    ours, stock = (float(row[3]) for row in table.rows)
    assert ours < stock == 1


def test_ways_to_rle_agree():
    pytest.importorskip('mmdet')
    from benchmarks.evaluation import mask_output

    (table,) = mask_output(detections=(20,), repeats=1)
    assert len({row[-1] for row in table.rows}) == 1
    assert len(table.rows) == 3


def test_options_lower_the_estimates():
    pytest.importorskip('mmdet')
    from benchmarks.detector_memory import estimate_inference, estimate_training

    fp32 = estimate_inference('tiny', 256)
    assert estimate_inference('tiny', 256, autocast=True, bf16_weights=True) < fp32
    kept, half, every = (
        estimate_training('small', 512, recomputed=which) for which in ('none', 'half', 'all')
    )
    assert every < half < kept
    assert estimate_training('small', 512, recomputed='none', frozen=True) < kept


@pytest.mark.slow
@pytest.mark.parametrize(('mode', 'side'), [('inference', 1024), ('training', 512)])
def test_estimate_is_within_a_fifth_of_a_measured_peak(mode, side):
    pytest.importorskip('mmdet')
    from benchmarks import detector_memory
    from eva_mm.rel_pos_kernels import use_kernel

    with use_kernel('blocked'):  # the processor's
        estimate = getattr(detector_memory, f'estimate_{mode}')('base', side)
    measured = in_child('detector_memory', mode, 'base', str(side))['peak']
    assert estimate == pytest.approx(measured, rel=0.2)


def test_flops_of_a_pretraining_step_are_those_of_the_closed_form():
    """Products with weights and attention, forward once and backward twice."""
    pytest.importorskip('open_clip')
    from benchmarks.pretrain_step import count_flops, model_config

    def transformer(depth, width, mlp, tokens):
        weights = 4 * width**2 + 2 * width * mlp
        return 2 * depth * tokens * (weights + 2 * tokens * width)

    flops = count_flops(model_config('giant'))
    assert flops['student'] == pytest.approx(3 * transformer(40, 1408, 6144, 257), rel=0.01)
    assert flops['teacher'] == pytest.approx(transformer(24, 1024, 4096, 257), rel=0.01)
    assert count_flops(model_config('giant', recompute=True)) == flops


def test_a_size_too_slow_for_a_cpu_is_computed_from_one_and_two_blocks(monkeypatch):
    pytest.importorskip('open_clip')
    from benchmarks import pretrain_step

    def timed(model_cfg, options):
        return dict(seconds=5 + 2 * model_cfg['size'].depth, peak=1)

    monkeypatch.setattr(pretrain_step, 'measure_student', timed)
    options = dict(device='cpu', recompute=False)
    result = pretrain_step.measure('giant', 'student', options)
    assert result == dict(seconds=5 + 2 * 40, peak=None, computed=True)


def test_a_pretraining_step_is_measured():
    """With a student of one block."""
    pytest.importorskip('open_clip')
    code = """
        from benchmarks import pretrain_step as b
        options = dict(device='cpu', bf16=False, batch=1, steps=1, recompute=True, compile=False)
        result = b.measure_student(b.model_config('base', depth=1), options)
        assert 0 < result['seconds'] < 60
        assert result['peak'] > 16 * 7e6  # weights, gradients and two moments of one block
    """
    # In a process of its own: this one may hold as much that it can use anew.
    subprocess.run([sys.executable, '-c', textwrap.dedent(code)], cwd=ROOT, check=True)


def test_pretraining_step_needs_no_host_but_mmengine():
    pytest.importorskip('open_clip')
    code = (
        'import sys\n'
        "for name in ('mmcv', 'mmdet', 'mmseg', 'mmaction'): sys.modules[name] = None\n"
        'from benchmarks import pretrain_step as b\n'
        "print(b.count_flops(b.model_config('base', depth=1)))"
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(find_spec('mmaction') is None, reason='needs mmaction2')
def test_estimates_of_clips():
    """Checkpointing costs less, more frames and views more; weights and AdamW are the floor."""
    from benchmarks.video_memory import estimate_inference, estimate_training

    weights = 4 * 86e6  # of `base`, 12 blocks of width 768
    one, many = (estimate_inference('base', 4, views) for views in (1, 4))
    assert weights < one < many < 2 * weights
    kept, recomputed = (estimate_training('base', 4, recomputed=on) for on in (False, True))
    assert 4 * weights < recomputed < kept
    assert estimate_training('base', 8) > recomputed


@pytest.mark.skipif(find_spec('mmaction') is None, reason='needs mmaction2')
@pytest.mark.slow
def test_estimate_of_clips_is_within_a_fifth_of_a_measured_peak():
    from benchmarks import video_memory

    for mode, size, frames in (('inference', 'base', 16), ('training', 'base', 8)):
        estimate = getattr(video_memory, f'estimate_{mode}')(size, frames)
        measured = in_child('video_memory', mode, size, str(frames))['peak']
        assert estimate == pytest.approx(measured, rel=0.2)
