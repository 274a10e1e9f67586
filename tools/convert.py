"""Convert checkpoints between formats, sizes and tasks: `python tools/convert.py SRC DST`."""

import argparse
import sys
from pathlib import Path

# In a checkout that is not installed, eva_mm lies beside this folder.
sys.path.append(str(Path(__file__).resolve().parents[1]))

EXAMPLES = """examples:
  published detector for mmdet, with its class names:
    convert.py eva_lvis.pth eva_lvis_mm.pth --dataset mmdet.datasets.LVISV1Dataset
  one's own detector, under the authors' names:
    convert.py work_dirs/lvis/iter_75000.pth mine.pth --to official
  ImageNet-21K weights as a start for other classes, at 336 px:
    convert.py eva_21k_224px_psz14.pt start.pth --drop-head --img-size 336
  the 200 classes of ImageNet-R out of 1000, by a mask of 1000 true and false:
    convert.py eva://eva_21k_1k_336px r.pth --head-rows imagenet_r_mask.json
  masked pretraining -> 16 px patches -> start of a detector:
    convert.py eva_psz14.pt psz16.pth --patch-size 16
  image model -> 8-frame video model; K-722 -> 16 frames of K-400:
    convert.py eva_psz14.pt video.pth --frames 8 --drop-pretraining-parts
    convert.py eva_video_k722.pth k400.pth --frames 16 --head-rows k722_to_k400_mapping.npy
  the moving average in a DeepSpeed folder:
    convert.py checkpoints/ ema.pth --ema

Nothing is left out in silence: unknown names, missing parts and heads of another size are errors
that list names and shapes, until an option says what to do with them.
"""


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description='Convert checkpoints of EVA between formats, sizes and tasks; print what\n'
        'was renamed, resized, dropped and kept.',
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('src', metavar='SRC', help='file, DeepSpeed folder, or eva://NAME of a published model')
    add('dst', metavar='DST', help='file to write')
    add(
        '--to',
        default='mm',
        metavar='FORMAT',
        help='mm: {meta, state_dict}, read by every OpenMMLab tool (default). official: {model}, '
        'the published names. timm: for timm.load_checkpoint, open_clip for CLIP. safetensors: '
        'see --names',
    )
    add(
        '--names',
        default='mm',
        metavar='NAMES',
        help='in a safetensors file: those of mm (default), official or timm',
    )
    add('--kind', help='what the weights have to be of: classifier, say (default: told by names)')
    add('--ema', action='store_true', help='take the moving average of the weights (model_ema)')
    add('--dtype', help='precision of all floating-point weights: float16, say (default: as is)')
    add('--force', action='store_true', help='replace DST where it exists')

    head = parser.add_argument_group('head').add_argument
    head('--num-classes', type=int, metavar='N', help='number of classes that the head must have')
    head('--drop-head', action='store_true', help='leave out what depends on the classes')
    head(
        '--head-rows',
        metavar='FILE',
        help='keep these rows of the head: indices or a mask over all classes (.npy, .json, .txt)',
    )
    head('--classes', metavar='FILE', help='class names to store, one per line')
    head('--dataset', metavar='CLASS', help='take them from the METAINFO of mmdet.datasets.X, say')

    size = parser.add_argument_group('sizes').add_argument
    size('--img-size', metavar='PX', help='pixels to resize positions to: 336 or 224x336')
    size('--grid', metavar='N', help='the same in patches')
    size('--patch-size', type=int, metavar='PX', help='resize the patch kernel, 14 -> 16 say')
    size('--frames', type=int, metavar='N', help='frames of the clip; image -> video as well')
    size('--from-frames', type=int, metavar='N', help='frames now, where SRC is not for 224 px')
    size('--tubelet-size', type=int, metavar='N', help='image -> video: frames per token')
    size(
        '--rel-pos-rule',
        choices=['linear', 'geometric_detector', 'geometric'],
        help='how relative position tables are resized (default: linear; geometric for BEiT ones)',
    )

    names = parser.add_argument_group('names').add_argument
    names(
        '--drop-pretraining-parts',
        action='store_true',
        help='leave out mask token, lm_head and MAE decoder',
    )
    names('--drop', action='append', default=[], metavar='PATTERN', help='leave out such names')
    names('--allow-unknown', action='store_true', help='carry unknown names on')
    names(
        '--allow-partial',
        action='store_true',
        help='go on where parts are missing, or blocks of the published depth',
    )
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    # After parsing: these take seconds, and `--help` should not.
    from contextlib import suppress

    with suppress(ImportError):
        import eva_mm.engine.checkpoint  # noqa: F401  reads what mmengine keeps beside weights
    from eva_mm.errors import InputError
    from eva_mm.zoo.files import convert_file

    try:
        report = convert_file(**vars(args))
    except InputError as error:
        sys.exit(f'convert.py: {error}')
    print(f'{args.src} -> {args.dst}\n{report}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
