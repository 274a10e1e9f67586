"""Generate a small demo data set in a real format.

python tools/make_demo.py lvis --out data/demo/lvis
python tools/make_demo.py imagenet --out data/demo/imagenet
python tools/make_demo.py captions --out data/demo/captions
python tools/make_demo.py ade20k --out data/demo/ade20k
python tools/make_demo.py kinetics --out data/demo/kinetics
"""

import argparse
import sys


def add_kind(kinds, name: str, help: str, *size: int, **counts: tuple[int, str]):
    """Parser of a kind of data set; ``counts`` are option -> default, what it counts."""
    kind = kinds.add_parser(name, help=help)
    kind.add_argument('--out', required=True, help='folder of the data set')
    for option, (default, what) in counts.items():
        flag = '--' + option.replace('_', '-')
        kind.add_argument(flag, type=int, default=default, metavar='N', help=f'{what} ({default})')
    kind.add_argument(
        '--size', type=int, nargs='+', default=size, metavar='PX', help='side, or height width'
    )
    kind.add_argument('--seed', type=int, default=0)
    return kind


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Generate a small demo data set')
    kinds = parser.add_subparsers(dest='kind', required=True)
    images = dict(num_train=(200, 'training images'), num_val=(60, 'validation images'))
    lvis = add_kind(kinds, 'lvis', 'LVIS v1 format, and COCO of the same scenes', 256, **images)
    lvis.add_argument('--crowds', action='store_true', help='add iscrowd regions (COCO files)')
    images = dict(
        train_per_class=(50, 'training images of each class'),
        val_per_class=(20, 'validation images of each class'),
    )
    add_kind(kinds, 'imagenet', 'a folder per class, as ImageNet unpacks', 96, **images)
    pairs = dict(num_train=(4000, 'training pairs'), num_val=(400, 'validation pairs'))
    add_kind(kinds, 'captions', "images and sentences, open_clip's CSV layout", 96, **pairs)
    clips = dict(
        train_per_class=(240, 'training clips of each class'),
        val_per_class=(40, 'validation clips of each class'),
    )
    add_kind(kinds, 'kinetics', 'clips and their lists; a class is a motion', 64, **clips)
    images = dict(num_train=(300, 'training images'), num_val=(60, 'validation images'))
    add_kind(kinds, 'ade20k', "a class per pixel, ADE20K's layout", 128, 160, **images)
    args = parser.parse_args()
    if len(args.size) > 2:
        parser.error(f'--size takes one or two numbers, not {len(args.size)}')
    return args


def main() -> None:
    options = vars(parse_args())
    from eva_mm import demo

    generate = dict(
        ade20k=demo.generate_ade20k,
        lvis=demo.generate_lvis,
        imagenet=demo.generate_imagenet,
        captions=demo.generate_captions,
        kinetics=demo.generate_kinetics,
    )[options.pop('kind')]
    size = options.pop('size')
    try:
        out = generate(size=size[0] if len(size) == 1 else tuple(size), **options)
    except ValueError as error:
        sys.exit(f'make_demo.py: {error}')
    print(f'demo data set: {out}')


if __name__ == '__main__':
    main()
