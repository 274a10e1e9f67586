"""Make the codes of tokenised features: `python tools/build_codebook.py CONFIG`."""

import argparse
import sys
from pathlib import Path

# In a checkout that is not installed, eva_mm lies beside this folder.
sys.path.append(str(Path(__file__).resolve().parents[1]))

try:
    from mmengine.config import DictAction
except ImportError:
    from eva_mm import compat

    compat.require_or_exit('mmengine')
    raise


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description="Cluster a teacher's patch features (spherical k-means), for configs whose "
        'target is CodebookClassification.'
    )
    parser.add_argument('config', help='config file, or its name such as pretrain/pilot_...')
    parser.add_argument('--out', help="file to write (default: the config's target.codebook)")
    parser.add_argument('--num-codes', type=int, help="default: the config's target.num_codes")
    parser.add_argument('--num-images', type=int, default=100_000, help='to look at')
    parser.add_argument('--patches-per-image', type=int, default=20, help='drawn from each')
    parser.add_argument('--iterations', type=int, default=20, help='of k-means')
    parser.add_argument('--device', help='cuda, cpu, ... (default: what is there)')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='settings that replace the config: k=v'
    )
    return parser.parse_args(argv)


def main(argv=None):
    args = vars(parse_args(argv))
    # After parsing: these take seconds, and `--help` should not.
    from mmengine.device import get_device
    from mmengine.registry import init_default_scope

    from eva_mm.engine import launch

    with launch.plain_errors('build_codebook.py'):
        cfg = launch.load_config(args.pop('config'), args.pop('cfg_options'))
        init_default_scope(cfg.get('default_scope', 'mmengine'))
        from eva_mm.pretraining.codebook import build_codebook

        args['device'] = args['device'] or get_device()
        out, book = build_codebook(cfg, **args)
    used = int((book.counts > 0).sum())
    print(f'{out}: {len(book.codes)} codes, {used} used, mean cosine {book.similarity:.4f}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
