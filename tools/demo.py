"""Train, test and draw EVA + cascade Mask R-CNN on a generated LVIS data set (`make demo`).

Safe to run again: the generator leaves a complete data set alone, and training goes on from its
last checkpoint, or ends at once when it was finished. `make clean-demo` starts over.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from eva_mm import get_config

ROOT = Path(__file__).resolve().parents[1]
CONFIG = 'configs/demo/lvis.py'
DATA = 'data/demo/lvis'
WORK = 'work_dirs/demo/lvis'
ANNOTATIONS = f'{DATA}/annotations/lvis_v1_val.json'
SHEET = f'{WORK}/contact_sheet.png'
COLUMNS = ('AP', 'APr', 'APc', 'APf')


def fail(step: str, problem: str, remedy: str) -> None:
    sys.exit(f'\n[demo] step "{step}" failed: {problem}\n[demo] remedy: {remedy}')


def run(step: str, remedy: str, *command: str) -> None:
    """Print a command as a user would type it, and run it with this Python."""
    print(f'\n[demo] {step}: python {shlex.join(command)}', flush=True)
    start = time.time()
    code = subprocess.run([sys.executable, *command], cwd=ROOT).returncode
    if code:
        fail(step, f'the command above ended with status {code}', remedy)
    print(f'[demo] {step}: done in {time.time() - start:.0f} s', flush=True)


def last_checkpoint() -> str:
    record = ROOT / WORK / 'last_checkpoint'
    if not record.is_file():
        fail('test', f'{WORK} holds no checkpoint', 'make clean-demo demo')
    return os.path.relpath(record.read_text().strip(), ROOT)


def hide_gpus_without_operators() -> None:
    """A GPU is of no use to mmcv's operators that were compiled for the CPU only."""
    import torch
    from mmcv.ops import get_compiling_cuda_version

    if torch.cuda.is_available() and get_compiling_cuda_version() == 'not available':
        print('[demo] mmcv was compiled without CUDA: running on the CPU (see docs/install.md)')
        os.environ['CUDA_VISIBLE_DEVICES'] = ''


def newest_metrics() -> dict:
    """Metrics of the newest test run: mmengine writes <time>/<time>.json into its work dir."""
    files = sorted((ROOT / WORK / 'test').glob('*/[0-9]*.json'))
    if not files:
        fail('table', f'no metrics in {WORK}/test', 'make demo')
    return json.loads(files[-1].read_text())


def print_table(metrics: dict) -> None:
    missing = [f'lvis/{kind}_AP' for kind in ('bbox', 'segm') if f'lvis/{kind}_AP' not in metrics]
    if missing:
        fail('table', f'the test reported no {missing[0]}', f'check test_evaluator of {CONFIG}')
    print(f'\n{"":6}' + ''.join(f'{column:>7}' for column in COLUMNS))
    for name, kind in (('box', 'bbox'), ('mask', 'segm')):
        values = (100 * metrics[f'lvis/{kind}_{column}'] for column in COLUMNS)
        print(f'{name:6}' + ''.join(f'{value:7.1f}' for value in values))


def is_trained() -> bool:
    """Whether the last checkpoint is that of the config's last iteration."""
    record = ROOT / WORK / 'last_checkpoint'
    last = get_config('demo/lvis').train_cfg.max_iters
    return record.is_file() and record.read_text().strip().endswith(f'iter_{last}.pth')


def is_tested() -> bool:
    """Whether the results are newer than the checkpoint."""
    results, checkpoint = ROOT / WORK / 'results.json', ROOT / last_checkpoint()
    return results.is_file() and results.stat().st_mtime > checkpoint.stat().st_mtime


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    os.chdir(ROOT)
    hide_gpus_without_operators()
    run('data', f'rm -rf {DATA}; make demo', 'tools/make_demo.py', 'lvis', '--out', DATA)
    remedy = 'make demo goes on from the last checkpoint; make clean-demo demo starts over'
    if is_trained():
        print(f'\n[demo] train: finished before, see {WORK} (make clean-demo starts over)')
    else:
        run('train', remedy, 'tools/train.py', CONFIG, '--work-dir', WORK, '--resume', 'auto')
    results = f'test_evaluator.outfile_prefix={WORK}/results'
    test = ('tools/test.py', CONFIG, last_checkpoint(), '--work-dir', f'{WORK}/test')
    if is_tested():
        print(f'\n[demo] test: finished before, see {WORK}/test')
    else:
        run('test', 'make clean-demo demo', *test, '--cfg-options', results)
    drawn = ('--images', DATA, '--out', SHEET)
    run('draw', 'make demo', 'tools/draw.py', ANNOTATIONS, f'{WORK}/results.json', *drawn)
    print_table(newest_metrics())
    print(f'\n[demo] predictions beside ground truth: {ROOT / SHEET}')


if __name__ == '__main__':
    main()
