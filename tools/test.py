"""Test any model of this project: `python tools/test.py CONFIG CHECKPOINT`."""

import argparse
import os
import sys
from pathlib import Path

# In a checkout that is not installed, eva_mm lies beside this folder.
sys.path.append(str(Path(__file__).resolve().parents[1]))

try:
    from mmengine.config import DictAction
except ImportError:
    from eva_mm import compat

    compat.require_or_exit('mmengine')
    raise


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description='Test a checkpoint, or evaluate saved results.')
    parser.add_argument('config', help='config file, or its name such as lvis/eva_cascade')
    parser.add_argument(
        'checkpoint', nargs='?', help='file, URL or eva:// name; not needed with --results'
    )
    parser.add_argument('--work-dir', help='folder of logs')
    parser.add_argument('--out', help='.pkl file for the predictions')
    parser.add_argument('--results', help='evaluate this results file instead of a model')
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument('--show-dir', help='folder for drawn predictions')
    parser.add_argument('--wait-time', type=float, default=2.0, help='seconds per shown image')
    parser.add_argument(
        '--compile', action='store_true', help="compile the transformer's blocks by torch.compile"
    )
    parser.add_argument(
        '--strategy',
        choices=['ddp', 'fsdp'],
        help='several processes: each holds the whole model (ddp, default), or its share (fsdp)',
    )
    parser.add_argument(
        '--variants',
        metavar='all|NAME,NAME',
        help="ImageNet's variants in the config, such as v2,a: one table beside the published one",
    )
    parser.add_argument('--tta', action='store_true', help='test-time augmentation of the config')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings that replace those of the config: key=value, key="[a,b]", key.sub=value',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = parser.parse_args(argv)
    if not args.checkpoint and not args.results:
        parser.error('give a CHECKPOINT to test, or --results FILE to evaluate')
    if args.variants and (args.results or args.out or args.show or args.show_dir):
        parser.error('--variants goes with neither --results, --out, --show nor --show-dir')
    return args


def main(argv=None):
    args = parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    # After parsing: these take seconds, and `--help` should not.
    from eva_mm import compat

    compat.require_or_exit('mmengine')
    from eva_mm.engine import launch

    with launch.plain_errors('test.py'):
        cfg = launch.prepare_test_config(
            args.config,
            args.checkpoint,
            cfg_options=args.cfg_options,
            work_dir=args.work_dir,
            launcher=args.launcher,
            show=args.show,
            show_dir=args.show_dir,
            wait_time=args.wait_time,
            tta=args.tta,
            compile=args.compile,
        )
        launch.set_strategy(cfg, args.strategy)
        if args.results:
            launch.evaluate_results(cfg, args.results)
        elif args.variants:
            launch.run_variants(cfg, args.variants)
        else:
            launch.run_test(cfg, args.out)


if __name__ == '__main__':
    main()
