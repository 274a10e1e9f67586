"""Write which rows of the Kinetics-722 head are a data set's classes.

python tools/map_classes.py data/kinetics400/train --union data/kinetics400/train \
    data/kinetics600/train data/kinetics700/train --out data/kinetics400/k722_to_k400.npy
"""

import argparse
import sys
from pathlib import Path

# In a checkout that is not installed, eva_mm lies beside this folder.
sys.path.append(str(Path(__file__).resolve().parents[1]))


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description='Write the place of each class of a data set in a union of several.'
    )
    parser.add_argument('classes', help='folder of class folders, or text file with class names')
    parser.add_argument(
        '--union', required=True, nargs='+', help='the same of each data set in the union'
    )
    parser.add_argument('--out', required=True, help='.npy or text file to write')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    from eva_mm import compat

    compat.require_or_exit('mmaction')
    from eva_mm.engine import launch
    from eva_mm.video import classes

    with launch.plain_errors('map_classes.py'):
        union = classes.union_of(classes.read_classes(source) for source in args.union)
        rows = classes.rows_in(union, classes.read_classes(args.classes))
        classes.write_rows(rows, args.out)
    print(f'{args.out}: {len(rows)} rows of {len(union)}')


if __name__ == '__main__':
    main()
