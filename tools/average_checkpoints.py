"""Average checkpoints of one model: `python tools/average_checkpoints.py OUT FILE FILE ...`."""

import argparse
import sys
from pathlib import Path

# In a checkout that is not installed, eva_mm lies beside this folder.
sys.path.append(str(Path(__file__).resolve().parents[1]))


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description='Write the mean of checkpoints of one model, computed in float64. Counters and '
        'class names are those of the last file. All must agree in names and shapes.'
    )
    parser.add_argument('out', metavar='OUT', help='file to write (.pth, .pt or .safetensors)')
    parser.add_argument('files', metavar='FILE', nargs='+', help='checkpoints, two or more')
    parser.add_argument(
        '--dtype', help='precision of the result: float32, say (default: that of the last file)'
    )
    parser.add_argument('--force', action='store_true', help='replace OUT where it exists')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    # After parsing: these take seconds, and `--help` should not.
    from contextlib import suppress

    with suppress(ImportError):
        import eva_mm.engine.checkpoint  # noqa: F401  reads what mmengine keeps beside weights
    from eva_mm.errors import InputError
    from eva_mm.zoo.averaging import average_files

    try:
        count = average_files(**vars(args))
    except InputError as error:
        sys.exit(f'average_checkpoints.py: {error}')
    print(f'wrote {args.out}: the mean of {len(args.files)} files, {count} tensors')
    return 0


if __name__ == '__main__':
    sys.exit(main())
