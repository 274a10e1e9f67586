"""Write model_zoo.md from the table of published checkpoints."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# In a checkout that is not installed, eva_mm lies beside this folder.
sys.path.append(str(ROOT))


def main(argv=None):
    parser = argparse.ArgumentParser(
        description='Write model_zoo.md from eva_mm/zoo/models.yml. The configs that exist get '
        'links.'
    )
    parser.add_argument('--out', type=Path, default=ROOT / 'model_zoo.md', help='file to write')
    parser.add_argument(
        '--check', action='store_true', help='write nothing; exit status 1 if the file is stale'
    )
    args = parser.parse_args(argv)
    from eva_mm.errors import InputError
    from eva_mm.zoo import render

    try:
        text = render.render(ROOT)
    except InputError as error:
        print(f'render_zoo.py: {error}', file=sys.stderr)
        return 1
    if not render.is_stale(args.out, text):
        print(f'{args.out} is up to date')
        return 0
    if args.check:
        print(f'{args.out} is stale, run: python tools/render_zoo.py', file=sys.stderr)
        return 1
    render.write(args.out, text)
    print(f'written: {args.out}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
