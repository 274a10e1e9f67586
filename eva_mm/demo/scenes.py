"""Draws a planned scene: the picture, and for every object exactly the part one can see.

Objects are laid back to front on a grid ``SUPERSAMPLE`` times finer than the image. On it every
point belongs to one object or to the background, so coverage of the pixels, visible polygons and
occlusion all come from the same masks. A placement is refused when it would hide an object too
far, punch a hole into one (a polygon cannot say so) or leave slivers.
"""

from dataclasses import dataclass, field

import cv2
import numpy as np

from eva_mm.demo.catalogue import CATEGORIES, COLOURS, Category
from eva_mm.demo.plan import SPLITS, ScenePlan
from eva_mm.demo.shapes import MAX_TURN, OUTLINES, accent_weight

SUPERSAMPLE = 4
MIN_SIDE = 64
_REFERENCE_SIDE = 256
_SIZE_RANGE = (50.0, 110.0)  # longest extent in pixels at the reference side
_MIN_PART_AREA = 24.0  # pixels at the reference side
_MIN_VISIBLE = 0.4  # of the whole object, also what the image border cuts off counts as hidden
_MIN_VISIBLE_APART = 0.85
_OCCLUDING_SHARE = 0.28
_MAX_OUTSIDE = 0.3  # of the radius
_PLACEMENT_TRIES = 60
_SCENE_TRIES = 60
_CONTOUR_TOLERANCE = 1.0  # in cells of the fine grid
_MIN_WIDTH = 1.0  # pixels; narrower strips of a visible part ...
_MAX_WHISKER = 2.5  # ... may be no longer than this
_CROWD_SPACING = 0.66
_CROWD_RADIUS = 0.36


@dataclass(frozen=True)
class Instance:
    """One visible object.

    Attributes:
        category: Index into ``CATEGORIES``.
        parts: Polygons of what is visible, each (N, 2) float64 of x, y in pixels; pixel (0, 0)
            spans [0, 1] x [0, 1]. More than one where an occluder cuts the object in pieces.
            Empty for a crowd, whose region is ``Scene.owner``.
        listed: Whether LVIS annotates it (see ``ScenePlan.unlisted``).
        crowd: Whether it is a cluster of small objects rather than one.
    """

    category: int
    parts: tuple[np.ndarray, ...]
    listed: bool
    crowd: bool


@dataclass(frozen=True)
class Scene:
    """A drawn scene.

    Attributes:
        image: (H, W, 3) uint8, BGR.
        instances: Visible objects, back to front.
        owner: (H, W) int16, the index into ``instances`` that covers most of the pixel (at least
            half of it), -1 for background.
        plan: The plan it was drawn from.
    """

    image: np.ndarray
    instances: tuple[Instance, ...]
    owner: np.ndarray
    plan: ScenePlan


@dataclass
class _Object:
    """An object on the fine grid; ``whole`` and ``visible`` are (h, w) bool in its window."""

    category: int
    listed: bool
    crowd: bool
    centres: np.ndarray  # (K, 2) x, y in pixels; K > 1 in a crowd
    radius: float
    angle: float
    area: float  # in pixels, also outside of the image
    left: int = 0  # window origin on the fine grid, multiples of SUPERSAMPLE
    top: int = 0
    whole: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), bool))
    visible: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), bool))

    @property
    def bottom(self) -> int:
        return self.top + self.whole.shape[0]

    @property
    def right(self) -> int:
        return self.left + self.whole.shape[1]


def draw_scene(
    plan: ScenePlan,
    size: tuple[int, int],
    seed: int,
    split: str,
    index: int,
    crowds: bool = False,
) -> Scene:
    """Draws one scene; the same arguments always give the same pixels.

    Args:
        plan: What the scene holds.
        size: (height, width) in pixels, each at least ``MIN_SIDE``.
        seed: Seed of the data set.
        split: ``'train'`` or ``'val'``.
        index: Number of the scene within its split.
        crowds: Draw the plan's unlisted instance as a cluster of small objects.

    Raises:
        RuntimeError: No arrangement was found (not met with plans of ``plan_split``).
    """
    for attempt in range(_SCENE_TRIES):
        rng = np.random.default_rng([seed, SPLITS.index(split), index, attempt])
        objects = _arrange(plan, size, rng, crowds)
        if objects is not None:
            return _finish(plan, objects, size, rng)
    raise RuntimeError(f'no arrangement found for scene {index} of {split} at size {size}')


# Arrangement ------------------------------------------------------------------------------------


def _arrange(
    plan: ScenePlan, size: tuple[int, int], rng: np.random.Generator, crowds: bool
) -> list[_Object] | None:
    """Places every planned object, or returns None when one finds no room."""
    wanted = [(category, True) for category in plan.categories]
    if plan.unlisted is not None:
        wanted.insert(int(rng.integers(len(wanted) + 1)), (plan.unlisted, False))
    objects: list[_Object] = []
    for category, listed in wanted:
        if not _place(objects, category, listed, crowds and not listed, size, rng):
            return None
    return objects


def _place(
    objects: list[_Object],
    category: int,
    listed: bool,
    crowd: bool,
    size: tuple[int, int],
    rng: np.random.Generator,
) -> bool:
    """Adds one object in front of the others; False when no try fits."""
    occluding = bool(objects) and rng.random() < _OCCLUDING_SHARE
    for attempt in range(_PLACEMENT_TRIES):
        neighbour = objects[rng.integers(len(objects))] if occluding else None
        candidate = _propose(category, listed, crowd, size, neighbour, rng)
        apart = not occluding and attempt < _PLACEMENT_TRIES // 2
        hidden = _hide_behind(objects, candidate, _MIN_VISIBLE_APART if apart else _MIN_VISIBLE)
        if hidden is not None and _acceptable(candidate, candidate.visible, _MIN_VISIBLE):
            for occluded, visible in hidden:
                occluded.visible = visible
            objects.append(candidate)
            return True
    return False


def _propose(
    category: int,
    listed: bool,
    crowd: bool,
    size: tuple[int, int],
    neighbour: _Object | None,
    rng: np.random.Generator,
) -> _Object:
    """A random pose, near ``neighbour`` where one is given."""
    scale = min(size) / _REFERENCE_SIDE
    shape = CATEGORIES[category].shape
    radius = rng.uniform(*_SIZE_RANGE) * scale / 2
    if shape == 'bar':  # thin: no shorter than needed to be seen
        radius = max(radius, 34 * scale)
    angle = rng.uniform(-1, 1) * MAX_TURN[shape]
    if neighbour is None:
        low, high = radius * (1 - _MAX_OUTSIDE), np.array(size[::-1]) - radius * (1 - _MAX_OUTSIDE)
        centre = rng.uniform(np.minimum(low, high), high)
    else:
        centre = neighbour.centres[0] + rng.uniform(-1, 1, 2) * neighbour.radius
    centres = centre[None]
    if crowd:
        radius = max(radius, 40 * scale)
        centres = centre + radius * _CROWD_SPACING * _jittered_grid(rng)
        radius *= _CROWD_RADIUS
    return _rasterise(_Object(category, listed, crowd, centres, radius, angle, 0.0), size)


def _jittered_grid(rng: np.random.Generator) -> np.ndarray:
    grid = np.stack(np.meshgrid([-1.0, 0.0, 1.0], [-1.0, 0.0, 1.0]), axis=-1).reshape(-1, 2)
    return grid + rng.uniform(-0.15, 0.15, grid.shape)


def _rasterise(thing: _Object, size: tuple[int, int]) -> _Object:
    """Fills the object's window on the fine grid, cut at the image border."""
    u, v = thing.radius * OUTLINES[CATEGORIES[thing.category].shape].T
    cosine, sine = np.cos(thing.angle), np.sin(thing.angle)
    outline = np.stack([cosine * u - sine * v, sine * u + cosine * v], axis=1)
    thing.area = len(thing.centres) * float(cv2.contourArea(outline.astype(np.float32)))
    polygons = [centre + outline for centre in thing.centres]
    points = np.concatenate(polygons)
    bounds = np.array(size[::-1])
    low = np.clip(np.floor(points.min(0)).astype(int) - 1, 0, bounds)
    high = np.clip(np.ceil(points.max(0)).astype(int) + 1, low, bounds)
    width, height = (high - low) * SUPERSAMPLE
    canvas = np.zeros((height, width), np.uint8)
    for polygon in polygons if canvas.size else []:
        # The centre of fine cell i lies at (i + 0.5) / SUPERSAMPLE pixels; 4 fractional bits.
        cells = np.rint(((polygon - low) * SUPERSAMPLE - 0.5) * 16).astype(np.int32)
        cv2.fillPoly(canvas, [cells], 1, shift=4)
    thing.left, thing.top = (low * SUPERSAMPLE).tolist()
    thing.whole = canvas.astype(bool)
    thing.visible = thing.whole
    return thing


def _hide_behind(
    objects: list[_Object], front: _Object, min_visible: float
) -> list[tuple[_Object, np.ndarray]] | None:
    """What stays visible of each object that ``front`` overlaps; None if that is not acceptable."""
    hidden = []
    for thing in objects:
        top, bottom = max(thing.top, front.top), min(thing.bottom, front.bottom)
        left, right = max(thing.left, front.left), min(thing.right, front.right)
        if top >= bottom or left >= right:
            continue
        cover = _crop(front.whole, front, top, bottom, left, right)
        if not (cover & _crop(thing.visible, thing, top, bottom, left, right)).any():
            continue
        visible = thing.visible.copy()
        _crop(visible, thing, top, bottom, left, right)[cover] = False
        if not _acceptable(thing, visible, min_visible):
            return None
        hidden.append((thing, visible))
    return hidden


def _crop(
    mask: np.ndarray, thing: _Object, top: int, bottom: int, left: int, right: int
) -> np.ndarray:
    return mask[top - thing.top : bottom - thing.top, left - thing.left : right - thing.left]


def _acceptable(thing: _Object, visible: np.ndarray, min_visible: float) -> bool:
    """Visible enough, no holes, no slivers, no whiskers."""
    if visible.sum() < min_visible * thing.area * SUPERSAMPLE**2:
        return False
    if thing.crowd:
        return True
    contours, hierarchy = cv2.findContours(
        visible.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
    )
    if (hierarchy[0, :, 3] >= 0).any():
        return False
    # Relative to the object, so that it holds at any image size.
    reference_radius = np.mean(_SIZE_RANGE) / 2
    smallest = _MIN_PART_AREA * (thing.radius / reference_radius) ** 2 * SUPERSAMPLE**2
    if any(cv2.contourArea(contour) < smallest for contour in contours):
        return False
    return not _has_whisker(visible)


def _has_whisker(visible: np.ndarray) -> bool:
    """Whether a strip too thin to show up in the pixels sticks out of what is visible."""
    mask = visible.astype(np.uint8)
    brush = np.ones((round(_MIN_WIDTH * SUPERSAMPLE),) * 2, np.uint8)
    reach = np.ones((2 * round(_MAX_WHISKER * SUPERSAMPLE) + 1,) * 2, np.uint8)
    solid = cv2.morphologyEx(mask, cv2.MORPH_OPEN, brush)
    return bool((mask > cv2.dilate(solid, reach)).any())


def _parts(thing: _Object) -> tuple[np.ndarray, ...]:
    """Polygons in pixels around what is visible."""
    contours, _ = cv2.findContours(
        thing.visible.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    polygons = [cv2.approxPolyDP(contour, _CONTOUR_TOLERANCE, True)[:, 0] for contour in contours]
    origin = np.array([thing.left, thing.top])
    return tuple((polygon + origin + 0.5) / SUPERSAMPLE for polygon in polygons)


# Painting ---------------------------------------------------------------------------------------


def _finish(
    plan: ScenePlan, objects: list[_Object], size: tuple[int, int], rng: np.random.Generator
) -> Scene:
    background = _background(size, rng)
    picture = background.copy()
    owner = np.full(size, -1, np.int16)
    most = np.full(size, 0.5)
    for index, thing in enumerate(objects):
        rows = slice(thing.top // SUPERSAMPLE, thing.bottom // SUPERSAMPLE)
        columns = slice(thing.left // SUPERSAMPLE, thing.right // SUPERSAMPLE)
        coverage = _coverage(thing.visible)
        # Visible masks never overlap, hence the colours just add up.
        picture[rows, columns] += coverage[..., None] * (
            _surface(thing, rng) - background[rows, columns]
        )
        largest = coverage >= most[rows, columns]
        owner[rows, columns][largest] = index
        most[rows, columns][largest] = coverage[largest]
    instances = tuple(
        Instance(o.category, () if o.crowd else _parts(o), o.listed, o.crowd) for o in objects
    )
    return Scene(np.clip(np.rint(picture), 0, 255).astype(np.uint8), instances, owner, plan)


def _coverage(mask: np.ndarray) -> np.ndarray:
    """(h, w) share of each pixel that the fine mask covers."""
    height, width = mask.shape[0] // SUPERSAMPLE, mask.shape[1] // SUPERSAMPLE
    return mask.reshape(height, SUPERSAMPLE, width, SUPERSAMPLE).mean((1, 3))


def _noise(size: tuple[int, int], cells: float, rng: np.random.Generator) -> np.ndarray:
    """(h, w) smooth noise of unit variance on average, with about ``cells`` pixels per bump."""
    grid = rng.standard_normal((int(size[0] / cells) + 3, int(size[1] / cells) + 3))
    smooth = cv2.resize(grid, None, fx=cells, fy=cells, interpolation=cv2.INTER_CUBIC)
    return smooth[: size[0], : size[1]]


def _background(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) float64 BGR: a muted colour with cloudy or grainy texture of low contrast."""
    scale = min(size) / _REFERENCE_SIDE
    hsv = np.array([rng.uniform(0, 180), rng.uniform(15, 60), rng.uniform(95, 165)])
    colour = _bgr(hsv)
    rows, columns = np.mgrid[-1 : 1 : size[0] * 1j, -1 : 1 : size[1] * 1j]
    direction = rng.uniform(0, 2 * np.pi)
    texture = 9 * (np.cos(direction) * columns + np.sin(direction) * rows)
    texture += 6 * _noise(size, max(48 * scale, 4), rng) + 4 * _noise(size, max(12 * scale, 2), rng)
    if rng.random() < 0.5:  # a weave
        along = np.cos(direction) * columns - np.sin(direction) * rows
        texture += 3 * np.sin(2 * np.pi * rng.uniform(6, 14) * along)
    grain = rng.normal(0, 3, size)
    return colour + (texture + grain)[..., None]


def _bgr(hsv: np.ndarray) -> np.ndarray:
    """(3,) float64 BGR of an OpenCV 8-bit HSV colour; hue wraps around."""
    hue, saturation, value = hsv
    pixel = np.array([[[hue % 180, np.clip(saturation, 0, 255), np.clip(value, 0, 255)]]])
    return cv2.cvtColor(np.rint(pixel).astype(np.uint8), cv2.COLOR_HSV2BGR)[0, 0].astype(float)


def _jittered(colour: str, rng: np.random.Generator) -> np.ndarray:
    hue, saturation, value = COLOURS[colour]
    return _bgr(
        np.array(
            [
                hue + rng.uniform(-2.5, 2.5),
                saturation * rng.uniform(0.9, 1.1),
                value * rng.uniform(0.9, 1.08),
            ]
        )
    )


def _surface(thing: _Object, rng: np.random.Generator) -> np.ndarray:
    """(h, w, 3) float64 BGR of the object's window: pattern, light, grain and a darker rim."""
    category: Category = CATEGORIES[thing.category]
    height, width = thing.whole.shape[0] // SUPERSAMPLE, thing.whole.shape[1] // SUPERSAMPLE
    u, v = _object_frame(thing, height, width)
    weight = accent_weight(category.pattern, category.shape, u, v)[..., None]
    base = _jittered(category.base, rng)
    accent = _jittered(category.accent, rng)
    light = 1 - 0.1 * (np.cos(thing.angle) * v - np.sin(thing.angle) * u)
    light += 0.025 * _noise((height, width), max(thing.radius / 4, 2), rng)
    light *= _rim(thing)
    colour = base * (1 - weight) + accent * weight
    return colour * light[..., None] + rng.normal(0, 4, (height, width, 1))


def _object_frame(thing: _Object, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """u, v of each pixel centre in the frame of the nearest object centre."""
    y, x = np.mgrid[:height, :width] + 0.5
    x += thing.left / SUPERSAMPLE
    y += thing.top / SUPERSAMPLE
    offsets = np.stack([x, y], axis=-1)[:, :, None] - thing.centres  # (h, w, K, 2)
    nearest = np.argmin((offsets**2).sum(-1), axis=-1)[..., None, None]
    dx, dy = np.moveaxis(np.take_along_axis(offsets, nearest, axis=2)[:, :, 0], -1, 0)
    cosine, sine = np.cos(thing.angle), np.sin(thing.angle)
    return (cosine * dx + sine * dy) / thing.radius, (cosine * dy - sine * dx) / thing.radius


def _rim(thing: _Object) -> np.ndarray:
    """(h, w) factor that darkens the last 6 % of the radius, so that like colours part."""
    padded = np.pad(thing.whole, 1).astype(np.uint8)
    # The image border is no edge of the object, but its windows touch it only where cut.
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, 3)[1:-1, 1:-1]
    depth = depth.reshape(
        depth.shape[0] // SUPERSAMPLE, SUPERSAMPLE, depth.shape[1] // SUPERSAMPLE, SUPERSAMPLE
    ).mean((1, 3))
    rim = max(0.06 * thing.radius, 1.0) * SUPERSAMPLE
    return 0.6 + 0.4 * np.clip(depth / rim, 0, 1)
