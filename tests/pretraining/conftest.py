"""Photos of random patches, in the folders that small leaves read."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope='session')
def photos(tmp_path_factory):
    """Folder with ``train`` (12) and ``val`` (5) images of different sizes."""
    root = tmp_path_factory.mktemp('photos')
    generator = np.random.default_rng(0)
    for part, number in (('train', 12), ('val', 5)):
        (root / part).mkdir()
        for index in range(number):
            colours = generator.integers(0, 256, (8, 8 + index % 3, 3), dtype=np.uint8)
            image = Image.fromarray(colours).resize((90 + index, 80))
            image.save(root / part / f'{index:02}.png')
    return root
