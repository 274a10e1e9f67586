"""What several tests share."""

from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

import eva_mm

ROOT = Path(__file__).resolve().parents[1]


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """||actual - expected|| / ||expected||."""
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).norm() / expected.norm().clamp(min=1e-12))


def load_config(name: str, scope: str = 'mmdet') -> Config:
    """Config of the checkout by name, with its modules imported and its scope set."""
    config = eva_mm.get_config(name)
    init_default_scope(scope)
    return config


def one_to_one(allowed: np.ndarray) -> bool:
    """Whether a square bool matrix holds a perfect matching of rows and columns."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import maximum_bipartite_matching

    matching = maximum_bipartite_matching(csr_matrix(allowed), perm_type='column')
    return bool((matching >= 0).all())
