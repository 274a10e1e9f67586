"""Look at a run: curves, a detector's mistakes, its worst and best images, features of patches.

    python tools/look.py curves work_dirs/demo/lvis --out curves.png
    python tools/look.py confusion data/demo/lvis/annotations/lvis_v1_val.json results.json \
        --out confusion.png
    python tools/look.py images data/demo/lvis/annotations/lvis_v1_val.json results.json \
        --images data/demo/lvis --out-dir pictures
    python tools/look.py features photo.jpg --model eva_psz14 --out features.png
    python tools/look.py mim photo.jpg --out mim.png \
        --model configs/demo/pretrain.py:work_dirs/demo/pretrain/iter_700.pth
"""

import argparse
import sys
from pathlib import Path

# In a checkout that is not installed, eva_mm lies beside this folder.
sys.path.append(str(Path(__file__).resolve().parents[1]))


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Look at a run')
    kinds = parser.add_subparsers(dest='kind', required=True)
    curves = kinds.add_parser('curves', help='loss, learning rate and metrics by iteration')
    curves.add_argument('runs', nargs='+', help='work dirs, or scalars.json files')
    curves.add_argument('--keys', nargs='+', help='scalars to draw, as the log names them')
    curves.add_argument('--out', required=True, help='PNG to write')
    confusion = kinds.add_parser('confusion', help='which categories are taken for which')
    confusion.add_argument('annotations', help='LVIS or COCO annotation file')
    confusion.add_argument('results', help='COCO-format result list')
    confusion.add_argument('--score-thr', type=float, default=0.3)
    confusion.add_argument('--iou-thr', type=float, default=0.5)
    confusion.add_argument('--limit', type=int, default=30, help='categories, and errors told (30)')
    confusion.add_argument('--out', required=True, help='PNG to write')
    images = kinds.add_parser('images', help='images of lowest and highest AP, beside the truth')
    images.add_argument('annotations', help='LVIS or COCO annotation file')
    images.add_argument('results', help='COCO-format result list')
    images.add_argument('--images', required=True, help='image folder, or its parent')
    images.add_argument('--metric', choices=['bbox', 'segm'], default='bbox')
    images.add_argument('--num-images', type=int, default=8, help='images of each kind (8)')
    images.add_argument('--score-thr', type=float, default=0.3, help='of predictions drawn')
    images.add_argument('--out-dir', required=True, help='folder for worst.png and best.png')
    features = kinds.add_parser('features', help='principal components of patch features as RGB')
    features.add_argument('--size', type=int, help="shorter side in pixels; the pretraining's")
    mim = kinds.add_parser('mim', help='a masked photo, and how alike predicted features are')
    mim.add_argument('--seed', type=int, default=0, help='of the masks')
    for kind in (features, mim):
        kind.add_argument('photos', nargs='+', metavar='IMAGE', help='image files')
        kind.add_argument('--model', required=True, metavar='NAME|CONFIG:CHECKPOINT')
        kind.add_argument('--device', default='cpu')
        kind.add_argument('--out', required=True, help='PNG to write')
        kind.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE', default=[])
    return parser.parse_args(argv)


def main(argv=None) -> None:
    args = parse_args(argv)
    from eva_mm import compat

    compat.require_or_exit('mmdet' if args.kind in ('confusion', 'images') else 'mmengine')
    from eva_mm.engine.launch import plain_errors

    draw = dict(
        curves=draw_curves,
        confusion=draw_confusion,
        images=draw_images,
        features=draw_features,
        mim=draw_mim,
    )[args.kind]
    with plain_errors('look.py'):
        for out in draw(args):
            print(f'drawn: {out}')


def draw_curves(args: argparse.Namespace) -> list[Path]:
    from eva_mm.engine.curves import draw_curves, read_curves

    return [draw_curves({run: read_curves(run) for run in args.runs}, args.out, args.keys)]


def draw_confusion(args: argparse.Namespace) -> list[Path]:
    from eva_mm.detection.confusion import count_confusions, draw_confusions

    found = count_confusions(args.annotations, args.results, args.score_thr, args.iou_thr)
    for annotated, predicted, count, share in found.worst(args.limit):
        print(f'{count:6d}  {100 * share:5.1f} % of {annotated} taken for {predicted}')
    return [draw_confusions(found, args.out, args.limit)]


def draw_images(args: argparse.Namespace) -> list[Path]:
    from eva_mm.demo.contact_sheet import draw_contact_sheet
    from eva_mm.detection.image_ap import rank_images

    ranked = rank_images(args.annotations, args.results, args.metric)
    drawn = []
    for name, part in (('worst', ranked), ('best', ranked[::-1])):
        chosen = dict(part[: args.num_images])
        print(name, *(f'{image_id}: {value:.3f}' for image_id, value in chosen.items()), sep='  ')
        out = Path(args.out_dir, f'{name}.png')
        files = (args.annotations, args.images, args.results, out)
        drawn.append(draw_contact_sheet(*files, score_thr=args.score_thr, image_ids=list(chosen)))
    return drawn


def draw_features(args: argparse.Namespace) -> list[Path]:
    from eva_mm.pretraining.looking import draw_features

    options = read_options(args.cfg_options)
    return [draw_features(args.photos, args.model, args.out, args.size, args.device, options)]


def read_options(texts: list[str]) -> dict:
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='*', action=DictAction, default={})
    return parser.parse_args(['--cfg-options', *texts]).cfg_options


def draw_mim(args: argparse.Namespace) -> list[Path]:
    from eva_mm.pretraining.looking import draw_masked

    options = read_options(args.cfg_options)
    return [draw_masked(args.photos, args.model, args.out, args.seed, args.device, options)]


if __name__ == '__main__':
    main()
