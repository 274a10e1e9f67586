"""Draw predictions beside ground truth.

    python tools/draw.py data/demo/lvis/annotations/lvis_v1_val.json results.segm.json \
        --images data/demo/lvis --out sheet.png
"""

import argparse
import sys


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Draw predictions beside ground truth')
    parser.add_argument('annotations', help='LVIS or COCO annotation file')
    parser.add_argument('results', help='COCO-format result list')
    parser.add_argument('--images', required=True, help='image folder, or its parent')
    parser.add_argument('--out', required=True, help='PNG to write')
    parser.add_argument('--num-images', type=int, default=8)
    parser.add_argument('--score-thr', type=float, default=0.3)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from eva_mm.demo.contact_sheet import draw_contact_sheet

    try:
        out = draw_contact_sheet(
            args.annotations, args.images, args.results, args.out, args.num_images, args.score_thr
        )
    except (ValueError, OSError) as error:
        sys.exit(f'draw.py: {error}')
    print(f'drawn: {out}')


if __name__ == '__main__':
    main()
