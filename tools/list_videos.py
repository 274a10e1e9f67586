"""Write the list of a folder's videos, cleaned as the published ones were.

python tools/list_videos.py data/kinetics400/val --out data/kinetics400/val.txt --keep-duplicates
python tools/list_videos.py data/kinetics400/train --out data/kinetics400/train.txt \
    --exclude data/kinetics400/val data/kinetics600/val data/kinetics700/val
"""

import argparse
import os
import sys
from pathlib import Path

# In a checkout that is not installed, eva_mm lies beside this folder.
sys.path.append(str(Path(__file__).resolve().parents[1]))


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description='Write a list of videos, `path label`, without duplicates, leaks and broken '
        'files.'
    )
    parser.add_argument('roots', nargs='+', help='folders with a folder of videos per class')
    parser.add_argument('--out', required=True, help='text file; classes.txt comes beside it')
    parser.add_argument(
        '--root', help='folder that paths are relative to; that of --out by default'
    )
    parser.add_argument(
        '--classes',
        help='folder of class folders, or text file with names in the order of the labels; by '
        'default classes.txt beside the list, else the folders, sorted',
    )
    parser.add_argument(
        '--exclude',
        nargs='+',
        default=[],
        metavar='FOLDER|CSV|LIST',
        help='leave out videos of these sets: class folders, tables of Kinetics, lists',
    )
    parser.add_argument(
        '--keep-duplicates', action='store_true', help='keep several files of one YouTube id'
    )
    parser.add_argument(
        '--youtube-ids',
        action='store_true',
        help='names of eleven characters, as -5NN5hdIwTc.mp4, are YouTube ids; else those of '
        'Kinetics alone, -5NN5hdIwTc_000038_000048.mp4',
    )
    parser.add_argument(
        '--no-decode', action='store_true', help='do not try whether each video can be decoded'
    )
    parser.add_argument(
        '--workers', type=int, default=os.cpu_count(), help='processes that decode; one per core'
    )
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    from eva_mm import compat

    compat.require_or_exit('mmaction')
    from eva_mm.engine import launch
    from eva_mm.video import lists

    with launch.plain_errors('list_videos.py'):
        report = lists.write_list(
            args.roots,
            args.out,
            root=args.root,
            classes=args.classes,
            exclude=args.exclude,
            keep_duplicates=args.keep_duplicates,
            decode=not args.no_decode,
            workers=args.workers,
            youtube_ids=args.youtube_ids,
        )
    print(report.text(args.out))


if __name__ == '__main__':
    main()
