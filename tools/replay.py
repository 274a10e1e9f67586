"""Run again the step at which a run stopped: `python tools/replay.py RECORD`."""

import argparse
import sys
from pathlib import Path

# In a checkout that is not installed, eva_mm lies beside this folder.
sys.path.append(str(Path(__file__).resolve().parents[1]))


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description='Replay a debug record of the NaN guard; exits 0 if the step fails again. '
        'A record names code to run, as a config does: only replay records that you trust.'
    )
    parser.add_argument('record', help='file non_finite_iter_<i>.pth of a work dir')
    parser.add_argument('--device', help='cpu, cuda, cuda:1 ...; default: the best there is')
    parser.add_argument('--rank', type=int, help='whose batch; default: the first to blame')
    parser.add_argument(
        '--anomaly',
        action='store_true',
        help="backward pass with autograd's anomaly detection, which names the line at fault",
    )
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    # After parsing: these take seconds, and `--help` should not.
    from eva_mm import compat

    compat.require_or_exit('mmengine')
    from eva_mm.engine import launch
    from eva_mm.engine.replay import replay

    with launch.plain_errors('replay.py'):
        failed_again = replay(args.record, args.device, args.rank, args.anomaly)
    return 0 if failed_again else 1


if __name__ == '__main__':
    sys.exit(main())
