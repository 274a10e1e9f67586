"""Generate a small demo data set in a real format.

python tools/make_demo.py lvis --out data/demo/lvis
"""

import argparse
import sys


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Generate a small demo data set')
    kinds = parser.add_subparsers(dest='kind', required=True)
    lvis = kinds.add_parser('lvis', help='LVIS v1 format, with COCO files of the same scenes')
    lvis.add_argument('--out', required=True, help='folder of the data set')
    lvis.add_argument('--num-train', type=int, default=200, help='training images (200)')
    lvis.add_argument('--num-val', type=int, default=60, help='validation images (60)')
    lvis.add_argument(
        '--size', type=int, nargs='+', default=[256], metavar='PX', help='side, or height width'
    )
    lvis.add_argument('--seed', type=int, default=0)
    lvis.add_argument('--crowds', action='store_true', help='add iscrowd regions (COCO files)')
    args = parser.parse_args()
    if len(args.size) > 2:
        parser.error(f'--size takes one or two numbers, not {len(args.size)}')
    return args


def main() -> None:
    args = parse_args()
    from eva_mm.demo.generate import generate_lvis

    size = args.size[0] if len(args.size) == 1 else tuple(args.size)
    try:
        out = generate_lvis(args.out, args.num_train, args.num_val, size, args.seed, args.crowds)
    except ValueError as error:
        sys.exit(f'make_demo.py: {error}')
    print(f'demo data set: {out}')


if __name__ == '__main__':
    main()
