"""Outlines and surface patterns of the demo objects, in the object's own frame.

The frame is centred on the object; every outline fits in the unit disc's bounding square
[-1, 1] x [-1, 1], v pointing down as in images.
"""

import numpy as np

_PATTERN_SHARPNESS = 6.0


def _regular(num_points: int, phase: float = 0.0) -> np.ndarray:
    angles = phase + 2 * np.pi * np.arange(num_points) / num_points
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _star() -> np.ndarray:
    points = _regular(10, -np.pi / 2)
    points[1::2] *= 0.5
    return points


def _cross(arm: float = 0.36) -> np.ndarray:
    corner = np.array([(1, -arm), (1, arm), (arm, arm), (arm, 1), (-arm, 1), (-arm, arm)])
    return np.concatenate([corner, -corner])


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    u = 16 * np.sin(t) ** 3
    v = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([u / 16, (v - 2.5) / 14.5], axis=1)


def _crescent() -> np.ndarray:
    """Unit disc less a disc of radius 0.8 shifted to the right, as one outline."""
    radius, shift = 0.8, 0.55
    cosine = (1 + shift**2 - radius**2) / (2 * shift)
    outer_end = np.arccos(cosine)
    inner_end = np.arctan2(np.sin(outer_end), cosine - shift)
    outer = np.linspace(outer_end, 2 * np.pi - outer_end, 50)
    inner = np.linspace(2 * np.pi - inner_end, inner_end, 40)[1:-1]
    outer_points = np.stack([np.cos(outer), np.sin(outer)], axis=1)
    inner_points = np.stack([shift + radius * np.cos(inner), radius * np.sin(inner)], axis=1)
    return np.concatenate([outer_points, inner_points])


OUTLINES: dict[str, np.ndarray] = {
    'disc': _regular(60),
    'square': np.array([(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)]),
    'triangle': np.array([(0, -0.95), (1.0, 0.85), (-1.0, 0.85)]),
    'star': _star(),
    'cross': _cross(),
    'heart': _heart(),
    'crescent': _crescent(),
    'bar': np.array([(-1.0, -0.3), (1.0, -0.3), (1.0, 0.3), (-1.0, 0.3)]),
}

# Symmetric shapes may turn by any angle; the others stay near upright so that a small detector
# meets few poses.
MAX_TURN = {
    'disc': np.pi,
    'star': 0.35,
    'triangle': 0.35,
    'heart': 0.35,
    'crescent': 0.5,
    'square': np.pi / 4,
    'cross': np.pi / 4,
    'bar': np.pi,
}


def _soft_step(wave: np.ndarray) -> np.ndarray:
    return np.clip(0.5 + _PATTERN_SHARPNESS * wave, 0, 1)


def accent_weight(pattern: str, shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Share of the accent colour, 0 to 1, at points of the object's frame.

    Args:
        pattern: One of ``catalogue.PATTERNS``.
        shape: The shape's name; ``core`` repeats its outline at reduced size.
        u: (H, W) horizontal coordinate, object spans [-1, 1].
        v: (H, W) vertical coordinate.
    """
    if pattern == 'plain':
        return np.zeros_like(u)
    if pattern == 'stripes':
        return _soft_step(np.sin(2 * np.pi * u / 0.62))
    if pattern == 'checker':
        return _soft_step(np.sin(np.pi * u / 0.36) * np.sin(np.pi * v / 0.36))
    if pattern == 'dots':
        return _soft_step(np.cos(np.pi * u / 0.3) + np.cos(np.pi * v / 0.3) - 0.6)
    if pattern == 'core':
        return _soft_step(4 * _core_distance(shape, u, v))
    raise ValueError(f'unknown pattern {pattern!r}')


def _core_distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance-like value, positive inside a core concentric with the shape."""
    if shape == 'cross':
        return 0.36 - np.maximum(np.abs(u), np.abs(v))
    return 0.5 - np.hypot(u, v)
