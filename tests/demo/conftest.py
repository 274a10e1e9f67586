import json
import warnings
from pathlib import Path

import pytest

from eva_mm.demo.generate import generate_lvis


@pytest.fixture(scope='session')
def demo_root(tmp_path_factory) -> Path:
    """The default data set."""
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        return generate_lvis(tmp_path_factory.mktemp('demo') / 'lvis')


@pytest.fixture(scope='session')
def demo_files(demo_root) -> dict:
    """Every annotation file by its stem."""
    return {p.stem: json.loads(p.read_text()) for p in (demo_root / 'annotations').iterdir()}


@pytest.fixture(scope='session')
def small_set(tmp_path_factory):
    """Makes a small set; arguments as ``generate_lvis``."""

    def make(out=None, num_train=9, num_val=7, size=96, **kwargs) -> Path:
        out = out or tmp_path_factory.mktemp('small')
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='.*too few for frequent')
            return generate_lvis(out, num_train, num_val, size, **kwargs)

    return make
