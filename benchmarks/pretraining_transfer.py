"""What pretraining is worth to fine-tuning: masked regression, distillation and no pretraining.

Everything is the demo's own: `tools/train.py` trains a CLIP teacher, two students with the same
steps, images and teacher, and from each, and from random weights, classifiers with a few labelled
images per class. A run that is complete in its work dir is not run again.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from .common import Table, benchmark

ROOT = Path(__file__).resolve().parents[1]
STARTS = {
    'random weights': None,
    'distillation (all patches, no mask)': 'pretrain_distill',
    'masked regression (EVA)': 'pretrain',
}
# Of the weights under training: the average has a memory of the length of such short runs.
METRIC = 'raw/accuracy/top1'
VAL_PER_CLASS = 40
_EVALUATIONS = 5


@benchmark(
    'pretraining_transfer',
    'top-1 of the demo classifier after equal steps from regression, distillation, nothing',
    seeds=int,
    steps=int,
    train_per_class=int,
    plot=str,
    work_dir=str,
)
def pretraining_transfer(
    seeds: int = 3,
    steps: int = 150,
    train_per_class: int = 10,
    plot: str = '',
    work_dir: str = 'work_dirs/benchmarks/pretraining_transfer',
) -> list[Table]:
    """Train what is not there yet, and compare.

    Args:
        seeds: fine-tuning runs from each start; the first is seeded 0.
        steps: of each fine-tuning.
        train_per_class: labelled images of each of the 24 classes.
        plot: PNG to draw the accuracy during fine-tuning into, with its spread over seeds.
        work_dir: of the fine-tuning runs, relative to the repository.

    Returns:
        One table: top-1 in percent of each seed, mean and sample standard deviation.

    Raises:
        ValueError: steps that are no multiple of the five evaluations.
    """
    if steps < 1 or steps % _EVALUATIONS:
        raise ValueError(f'steps is {steps}, expected a multiple of {_EVALUATIONS}')
    checkpoints = _pretrain()
    data = _labelled_images(train_per_class)
    curves = {
        start: [
            _fine_tune(ROOT / work_dir, data, name, checkpoints.get(name), steps, seed)
            for seed in range(seeds)
        ]
        for start, name in STARTS.items()
    }
    if plot:
        _plot(curves, Path(plot), f'{train_per_class} labelled images per class')
    return [_table(curves, steps, train_per_class)]


def _pretrain() -> dict[str, Path]:
    """Checkpoints of the demo's students, by config."""
    from eva_mm.demo import generate_captions

    generate_captions(ROOT / 'data/demo/captions')
    names = ['clip_teacher', *filter(None, STARTS.values())]
    return {name: _train(name, ROOT / 'work_dirs/demo' / name, {}) for name in names}


def _labelled_images(train_per_class: int) -> Path:
    from eva_mm.demo import generate_imagenet

    out = ROOT / f'data/demo/imagenet_{train_per_class}_per_class'
    return generate_imagenet(out, train_per_class, VAL_PER_CLASS)


def fine_tuning_options(
    data: Path, checkpoint: Path | None, steps: int, seed: int
) -> dict[str, Any]:
    """What a comparison changes in the demo's classifier; the same for every start but its weights.

    Args:
        data: image folders.
        checkpoint: to start from; None is random weights.
        steps: of the run, a tenth of it warm-up.
        seed: of weights and data.
    """
    warm_up = max(steps // 10, 1)
    options = {
        'train_dataloader.dataset.data_root': data / 'train',
        'val_dataloader.dataset.data_root': data / 'val',
        'train_cfg.max_iters': steps,
        'train_cfg.val_interval': steps // _EVALUATIONS,
        'param_scheduler.0.end': warm_up,
        'param_scheduler.1.begin': warm_up,
        'param_scheduler.1.end': steps,
        'param_scheduler.1.T_max': steps - warm_up,
        'default_hooks.checkpoint.interval': steps,
        'default_hooks.checkpoint.save_best': None,
        'default_hooks.logger.interval': max(steps // 10, 1),
        'randomness.seed': seed,
    }
    if checkpoint is not None:
        options |= {'load_from': checkpoint, 'model.allowed_missing': '[fc_norm.*,head.*]'}
    return options


def _fine_tune(
    work: Path, data: Path, name: str | None, checkpoint: Path | None, steps: int, seed: int
) -> dict[int, float]:
    """Top-1 in percent by iteration."""
    from eva_mm.engine.curves import read_curves

    folder = work / f'{data.name}_{steps}' / f'{name or "scratch"}_{seed}'
    _train('imagenet', folder, fine_tuning_options(data, checkpoint, steps, seed))
    return read_curves(str(folder))[METRIC]


def _train(config: str, folder: Path, options: Mapping[str, Any]) -> Path:
    """Run a demo config unless it is complete; return its last checkpoint."""
    import eva_mm

    length = (
        options.get('train_cfg.max_iters')
        or eva_mm.get_config(f'demo/{config}').train_cfg.max_iters
    )
    checkpoint = folder / f'iter_{length}.pth'
    if not (checkpoint.is_file() and _is_evaluated(folder, length)):
        command = [sys.executable, 'tools/train.py', f'configs/demo/{config}.py']
        settings = [f'{key}={value}' for key, value in options.items()]
        command += ['--work-dir', str(folder), '--cfg-options', 'log_level=WARNING', *settings]
        print(f'training configs/demo/{config}.py into {folder}', file=sys.stderr, flush=True)
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return checkpoint


def _is_evaluated(folder: Path, length: int) -> bool:
    """Whether a run logged metrics at its last iteration."""
    from eva_mm.engine.curves import read_curves

    return any('/' in name and length in curve for name, curve in read_curves(str(folder)).items())


def _table(
    curves: Mapping[str, Sequence[Mapping[int, float]]], steps: int, train_per_class: int
) -> Table:
    rows = []
    for start, runs in curves.items():
        values = [run[max(run)] for run in runs]
        spread = f'{stdev(values):.1f}' if len(values) > 1 else '-'
        rows.append((start, *(f'{v:.1f}' for v in values), f'{mean(values):.1f}', spread))
    seeds = range(len(next(iter(curves.values()))))
    header = ('start', *(f'seed {seed}' for seed in seeds), 'mean', 'standard deviation')
    notes = (
        f'Top-1 in percent on {24 * VAL_PER_CLASS} images after {steps} steps of 32 images, '
        f'{train_per_class} labelled ones per class; configs/demo/imagenet.py otherwise, at the '
        'same rate from each start.',
        'One pretraining each, of equal steps, images and teacher: the spread is that of '
        'fine-tuning alone.',
    )
    return Table(header, rows, 'Fine-tuning of the demo classifier', notes, ('onedl-mmengine',))


def _plot(curves: Mapping[str, Sequence[Mapping[int, float]]], out: Path, title: str) -> None:
    # Through the class, not pyplot, which would ask for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from eva_mm.engine.curves import write_figure

    figure = Figure(figsize=(5.5, 4), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for start, runs in curves.items():
        steps = sorted(runs[0])
        means = [mean(run[step] for run in runs) for step in steps]
        spreads = [stdev([run[step] for run in runs]) if len(runs) > 1 else 0 for step in steps]
        axes.errorbar(steps, means, spreads, label=start, marker='.', capsize=3)
    axes.set(title=title, xlabel='fine-tuning step', ylabel='top-1, %', ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend(fontsize='small')
    write_figure(figure, out)
