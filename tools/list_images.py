"""Write the list of a folder's images, so that a data set need not search it at every start.

python tools/list_images.py data/merged30m --out data/merged30m.txt
"""

import argparse
import os
import sys
from pathlib import Path

# In a checkout that is not installed, eva_mm lies beside this folder.
sys.path.append(str(Path(__file__).resolve().parents[1]))


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description='Write the list of the images below a folder.')
    parser.add_argument('root', help='folder; paths in the list are relative to it')
    parser.add_argument('--out', required=True, help='text file to write, one path per line')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    from eva_mm import compat

    compat.require_or_exit('mmengine')
    from eva_mm.engine import image_data, launch

    with launch.plain_errors('list_images.py'):
        images = image_data.list_images(args.root)
        image_data.write_file_list(images, args.out)
    print(f'{args.out}: {len(images):,} images')
    print(f"in a config: data_root='{args.root}', ann_file='{os.path.abspath(args.out)}'")


if __name__ == '__main__':
    main()
