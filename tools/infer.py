"""Run a model on images and videos: `python tools/infer.py IMAGE|FOLDER|VIDEO --model NAME`."""

import argparse
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
    parser = argparse.ArgumentParser(description='Run a model on images and videos.')
    parser.add_argument('input', help='image, video, or folder, searched with all folders below')
    parser.add_argument(
        '--model',
        required=True,
        metavar='NAME|CONFIG:CHECKPOINT',
        help='published name such as eva_lvis, or a config and its checkpoint',
    )
    parser.add_argument('--out', help='folder of results; work_dirs/infer/<input> by default')
    parser.add_argument(
        '--score-thr',
        type=float,
        help='leave out results at or below this score; detectors: 0.3 by default',
    )
    parser.add_argument(
        '--classes',
        nargs='+',
        help='report these classes only; eva_clip chooses among them, whatever they are: "a,b,c"',
    )
    parser.add_argument('--batch-size', type=int, default=1, help='images at a time')
    parser.add_argument('--device', help='cpu, cuda, cuda:1, ...; a GPU if there is one by default')
    parser.add_argument('--no-draw', action='store_true', help='write JSON alone')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings that replace those of the config: key=value, key="[a,b]", key.sub=value',
    )
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    # After parsing: these take seconds, and `--help` should not.
    from eva_mm import compat

    compat.require_or_exit('mmengine')
    from eva_mm.engine import inference, launch

    with launch.plain_errors('infer.py'):
        report = inference.infer(
            args.input,
            args.model,
            out=args.out,
            batch_size=args.batch_size,
            draw=not args.no_draw,
            device=args.device,
            cfg_options=args.cfg_options,
            score_thr=args.score_thr,
            classes=args.classes,
        )
    print(report.text())
    return report.status


if __name__ == '__main__':
    sys.exit(main())
