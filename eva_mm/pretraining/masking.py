"""Which patches a student has to predict. Grids are row-major, True means masked."""

from __future__ import annotations

import math
import random

import numpy as np
import torch
from mmengine.registry import TRANSFORMS

from eva_mm.errors import InputError


def _grid(grid_size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (grid_size, grid_size) if isinstance(grid_size, int) else grid_size
    if min(height, width) < 1:
        raise InputError(f'grid_size must be positive, got {grid_size}')
    return height, width


class Masking:
    """Base of transforms that add to a sample what is hidden of it, whatever it shows.

    Data sets whose views repeat call them apart from the rest, so that masks do not repeat.
    """


@TRANSFORMS.register_module()
class BlockMask(Masking):
    """Adds ``mask``, bool (height * width,): rectangles of random place, size and shape.

    Blocks are laid until ``num_masked`` cells are set or a block finds no place, so there can be
    fewer: with the published arguments 104.44 on average, 105 in 65 % of the masks. The area of a
    block is uniform between ``min_area`` and what is left to mask, even where less than
    ``min_area`` is left; its aspect ratio is log-uniform. A block is accepted if it is smaller
    than the grid on both sides and sets at least one new cell, but no more than are left (nor than
    ``max_area``).

    Source: github.com/baaivision/EVA, EVA-01/eva/masking_generator.py (BEiT's block-wise masking,
    arXiv 2106.08254, algorithm 1).

    Args:
        grid_size: patches of the image, (height, width) or one side.
        num_masked: most cells that are masked.
        min_area, max_area: bounds of a block's area in cells; ``max_area`` None: ``num_masked``.
        aspect_ratio: bounds of height over width.
        tries: attempts at a block.
        generator: source of random numbers; None: the global one of Python's ``random``, which
            data sets seed by the sample's position.

    Raises:
        InputError: ``num_masked`` is larger than the grid, or blocks cannot fit into it.
    """

    def __init__(
        self,
        grid_size: int | tuple[int, int] = 16,
        num_masked: int = 105,
        min_area: float = 16,
        max_area: float | None = None,
        aspect_ratio: tuple[float, float] = (0.3, 1 / 0.3),
        tries: int = 10,
        generator: random.Random | None = None,
    ) -> None:
        self.height, self.width = _grid(grid_size)
        self.num_masked = num_masked
        self.min_area = min_area
        self.max_area = num_masked if max_area is None else max_area
        self.log_ratio = tuple(math.log(bound) for bound in aspect_ratio)
        self.tries = tries
        self.generator = random if generator is None else generator
        self._check()

    def _check(self) -> None:
        cells, grid = self.height * self.width, f'grid of {self.height} x {self.width} patches'
        if not 0 < self.num_masked <= cells:
            raise InputError(f'num_masked={self.num_masked}: expected 1 to {cells} for a {grid}')
        largest = (self.height - 1) * (self.width - 1)
        if min(self.min_area, self.num_masked) > largest:
            raise InputError(
                f'min_area={self.min_area}: a block has at most {largest} cells in a {grid}'
            )

    def __call__(self, results: dict) -> dict:
        """Add a mask to a sample."""
        results['mask'] = torch.from_numpy(self.draw().ravel())
        return results

    def draw(self) -> np.ndarray:
        """A random mask, bool (height, width)."""
        mask = np.zeros((self.height, self.width), dtype=bool)
        left = self.num_masked
        while left > 0:
            added = self._add_block(mask, left)
            if not added:
                break
            left -= added
        return mask

    def _add_block(self, mask: np.ndarray, left: int) -> int:
        """Lay a block of at most ``left`` new cells; return their number, 0 if none fitted."""
        limit = min(left, self.max_area)
        for _ in range(self.tries):
            # uniform() takes bounds in either order, as it has to when little is left.
            area = self.generator.uniform(self.min_area, limit)
            ratio = math.exp(self.generator.uniform(*self.log_ratio))
            height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if height >= self.height or width >= self.width:
                continue
            top = self.generator.randint(0, self.height - height)
            start = self.generator.randint(0, self.width - width)
            block = mask[top : top + height, start : start + width]
            new = block.size - int(block.sum())
            if 0 < new <= limit:
                block[:] = True
                return new
        return 0


@TRANSFORMS.register_module()
class AlternatingMask(Masking):
    """Adds ``mask``, bool (height * width,): every other patch from the first on, always the same.

    The published validation's: EVA-01/eva/engine_for_pretraining.py (``evaluate_pt``).

    Args:
        grid_size: patches of the image, (height, width) or one side.
    """

    def __init__(self, grid_size: int | tuple[int, int] = 16) -> None:
        height, width = _grid(grid_size)
        self.num_patches = height * width

    def __call__(self, results: dict) -> dict:
        """Add the mask to a sample."""
        results['mask'] = torch.arange(self.num_patches) % 2 == 0
        return results


@TRANSFORMS.register_module()
class MaskNoise(Masking):
    """Adds ``noise``, float32 (height * width,) uniform in [0, 1), by whose order a model masks.

    Drawn with the data, so that masks depend on seed and position alone, whatever the model does
    with random numbers. Masked autoencoders keep the patches of lowest noise (arXiv 2111.06377).

    Args:
        grid_size: patches of the image, (height, width) or one side.
    """

    def __init__(self, grid_size: int | tuple[int, int] = 16) -> None:
        height, width = _grid(grid_size)
        self.num_patches = height * width

    def __call__(self, results: dict) -> dict:
        """Add noise to a sample."""
        results['noise'] = torch.rand(self.num_patches)
        return results
