"""List the published checkpoints, or download them: `python tools/download.py NAME`."""

import argparse
import sys
from pathlib import Path

# In a checkout that is not installed, eva_mm lies beside this folder.
sys.path.append(str(Path(__file__).resolve().parents[1]))


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description="List the published EVA checkpoints, or download them from the authors' "
        'repository BAAI/EVA on the Hugging Face hub. Size and sha256 are verified; a download '
        'that was interrupted continues. The exit status is 1 when a file could not be had.',
        epilog='Environment: HF_ENDPOINT (a mirror of https://huggingface.co), HF_HUB_CACHE '
        '(folder of the cache), HF_HOME (folder of cache and token), HF_TOKEN, HF_HUB_OFFLINE=1 '
        '(cached files only), HF_HUB_DISABLE_PROGRESS_BARS=1.',
    )
    parser.add_argument(
        'names',
        nargs='*',
        metavar='NAME',
        help='checkpoint to download, e.g. eva_psz14; see --list',
    )
    parser.add_argument('--list', action='store_true', help='tell which checkpoints there are')
    parser.add_argument('--all', action='store_true', help='download all of them')
    parser.add_argument('--task', help='with --list or --all: only the checkpoints of this task')
    parser.add_argument(
        '--dest',
        metavar='DIR',
        help='put the files into this folder, under their published names; default: the cache of '
        'huggingface_hub, where configs find them by eva://NAME',
    )
    args = parser.parse_args(argv)
    if not (args.names or args.list or args.all):
        parser.error('give a NAME to download, or --all, or --list')
    if args.names and (args.list or args.all):
        parser.error('give either NAMEs or --list or --all')
    if args.list and (args.all or args.dest):
        parser.error('--list downloads nothing: it goes without --all and --dest')
    if args.task and not (args.list or args.all):
        parser.error('--task goes with --list or --all')
    return args


def main(argv=None):
    args = parse_args(argv)
    # After parsing: these take a second, and `--help` should not.
    from eva_mm.errors import InputError
    from eva_mm.zoo import download, render, table

    def complain(text):
        print(f'download.py: {text}', file=sys.stderr)

    try:
        if args.list:
            print(render.format_list(table.published_models(), args.task))
            return 0
        names = download.names_to_fetch(args.names, args.all, args.task)
        failed = download.fetch_all(names, args.dest, complain=complain)
    except InputError as error:
        complain(error)
        return 1
    except KeyboardInterrupt:
        complain('interrupted; the same command continues where this one stopped')
        return 130
    if len(names) > 1:
        bad = f'; failed: {", ".join(failed)}' if failed else ''
        print(f'{len(names) - len(failed)} of {len(names)} checkpoints are there{bad}')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
