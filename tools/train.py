"""Train any model of this project: `python tools/train.py CONFIG`."""

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
    parser = argparse.ArgumentParser(description='Train a model, or tell what a run would be.')
    parser.add_argument('config', help='config file, or its name such as lvis/eva_cascade')
    parser.add_argument('--work-dir', help='folder of logs and checkpoints')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='go on from this checkpoint; without a value, from the newest of the work dir',
    )
    parser.add_argument(
        '--amp', action='store_true', help='mixed precision: bfloat16 where the device has it'
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the rate by the total batch, and runs by iterations to as many images',
    )
    parser.add_argument(
        '--accumulate',
        type=int,
        default=1,
        metavar='N',
        help='forward passes per update; the schedule stays that of the config, update by update',
    )
    parser.add_argument(
        '--dry-run',
        action='store_true',
        help='train nothing: print parameters, rates, schedule, batch, memory and what is missing',
    )
    parser.add_argument(
        '--compile', action='store_true', help="compile the transformer's blocks by torch.compile"
    )
    parser.add_argument(
        '--strategy',
        choices=['ddp', 'fsdp'],
        help='several processes: each holds the whole model (ddp, default), or its share (fsdp)',
    )
    parser.add_argument('--gpus', type=int, help='number of GPUs that --dry-run reckons with')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings that replace those of the config: key=value, key="[a,b]", key.sub=value',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    # After parsing: these take seconds, and `--help` should not.
    from eva_mm import compat

    compat.require_or_exit('mmengine')
    from eva_mm.engine import launch

    with launch.plain_errors('train.py'):
        cfg = launch.prepare_train_config(
            args.config,
            cfg_options=args.cfg_options,
            work_dir=args.work_dir,
            resume=args.resume,
            amp=args.amp,
            auto_scale_lr=args.auto_scale_lr,
            launcher=args.launcher,
            accumulate=args.accumulate,
            for_dry_run=args.dry_run,
            num_gpus=args.gpus,
            strategy=args.strategy,
            compile=args.compile,
        )
        if args.dry_run:
            return launch.dry_run(cfg, args.gpus)
        launch.run_training(cfg)
    return 0


if __name__ == '__main__':
    sys.exit(main())
