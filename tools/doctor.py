"""Tell what is installed, what does not fit together, and what mends it."""

import argparse
import sys
from pathlib import Path

# In a checkout that is not installed, eva_mm lies beside this folder.
sys.path.append(str(Path(__file__).resolve().parents[1]))


def main(argv=None):
    parser = argparse.ArgumentParser(
        description='Tell what is installed, what does not fit together, and what mends it. '
        'The exit status is 1 when something is broken.'
    )
    parser.parse_args(argv)
    from eva_mm import doctor

    return doctor.main()


if __name__ == '__main__':
    sys.exit(main())
