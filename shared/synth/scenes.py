"""Drawing of one scene: background, objects with shape, colour, pattern, size and occlusion.

A scene is a pure function of the generator passed in. Pixels of a mask are exactly the pixels drawn for the object
that no later object covers; polygons are rasterised by pycocotools, as COCO's own tools would.

Axes: H = W = `SCENE_SIZE_PX`, K objects in drawing order (back to front).
"""

from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask

from shared.synth.shapes import MAX_ROTATION_DEG, SHAPES, outline_xy_px

SCENE_SIZE_PX = 128
"""Height and width of a scene."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (244, 140, 30),
    "yellow": (240, 220, 50),
    "green": (50, 160, 60),
    "cyan": (60, 205, 215),
    "blue": (45, 80, 210),
    "purple": (130, 50, 170),
    "pink": (245, 130, 185),
}
"""Colour words and their sRGB centres."""

PATTERNS: tuple[str, ...] = ("plain", "striped", "dotted")

SIZES: dict[str, tuple[float, float]] = {
    "small": (8.5, 11.0),
    "medium": (13.0, 16.0),
    "large": (19.0, 24.0),
}
"""Size words and their circumscribed radii, pixels; the gaps keep the words unambiguous."""

COLOUR_JITTER = 14
"""Largest change of a channel of an object's colour, 8-bit levels."""


@dataclass(frozen=True, kw_only=True)
class SceneStyle:
    """What the scenes of one data set may contain."""

    num_objects: tuple[int, int] = (3, 7)
    """Fewest and most objects."""
    distractor_probability: float = 0.6
    """Chance that an object copies an earlier one but for a single attribute."""
    overlap_probability: float = 0.35
    """Chance that an object may cover part of another."""
    min_visible: float = 0.62
    """Smallest visible share of any object."""
    backgrounds: tuple[str, ...] = ("flat", "gradient", "texture")
    """Kinds of background drawn from."""
    noise_levels: int = 12
    """Largest amplitude of the pixel noise, 8-bit levels."""


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One object as drawn."""

    shape: str
    """One of `shapes.SHAPES`."""
    colour: str
    """Key of `COLOURS`."""
    pattern: str
    """One of `PATTERNS`."""
    size: str
    """Key of `SIZES`."""
    radius_px: float
    """Circumscribed radius."""
    angle_deg: float
    """Rotation."""
    centre_xy_px: tuple[float, float]
    """Centre in scene pixels."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A drawn scene."""

    image_HW3: np.ndarray
    """uint8 sRGB."""
    masks_KHW: np.ndarray
    """bool, visible pixels of each object."""
    objects: tuple[SceneObject, ...]
    """Back to front."""
    occluded_K: np.ndarray
    """bool, whether a later object covers part of it."""

    @property
    def boxes_xyxy_px(self) -> np.ndarray:
        """Tight boxes of the visible pixels, float32 [K, 4]; right and bottom edges are exclusive."""
        boxes = np.zeros((len(self.objects), 4), dtype=np.float32)
        for index, mask_HW in enumerate(self.masks_KHW):
            columns, rows = (
                np.flatnonzero(mask_HW.any(axis=0)),
                np.flatnonzero(mask_HW.any(axis=1)),
            )
            boxes[index] = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        return boxes


def draw_scene(
    rng: np.random.Generator,
    style: SceneStyle | None = None,
    required: tuple[str, ...] = SHAPES,
) -> Scene:
    """Draw one scene.

    Args:
        rng: Source of every choice.
        style: What may appear; the default is RefShapes'.
        required: The first object's shape is drawn from these, so that a split can insist on a family.

    Returns:
        The scene; every object keeps at least `style.min_visible` of its pixels.
    """
    style = style or SceneStyle()
    objects, masks = _place_objects(rng, style, required)
    image_HW3 = _background(rng, style)
    for item, mask_HW in zip(objects, masks, strict=True):
        _paint(image_HW3, item, mask_HW, rng)
    amplitude = int(rng.integers(0, style.noise_levels + 1))
    if amplitude:
        image_HW3 += rng.integers(-amplitude, amplitude + 1, image_HW3.shape, dtype=np.int16)
    image_HW3 = np.clip(image_HW3, 0, 255).astype(np.uint8)
    visible_KHW = np.stack(masks)
    covered_HW = np.zeros_like(masks[0])
    occluded_K = np.zeros(len(masks), dtype=bool)
    for index in range(len(masks) - 1, -1, -1):
        occluded_K[index] = bool((visible_KHW[index] & covered_HW).any())
        visible_KHW[index] &= ~covered_HW
        covered_HW |= masks[index]
    return Scene(
        image_HW3=image_HW3,
        masks_KHW=visible_KHW,
        objects=tuple(objects),
        occluded_K=occluded_K,
    )


def rasterise(item: SceneObject) -> np.ndarray:
    """Pixels of an object before occlusion, bool [H, W]."""
    outlines = outline_xy_px(item.shape, item.centre_xy_px, item.radius_px, item.angle_deg)
    layers = [_polygon_mask(outline) for outline in outlines]
    return layers[0] if len(layers) == 1 else layers[0] & ~layers[1]


def _polygon_mask(polygon_xy_px: np.ndarray) -> np.ndarray:
    encoded = coco_mask.frPyObjects([polygon_xy_px.ravel().tolist()], SCENE_SIZE_PX, SCENE_SIZE_PX)
    return coco_mask.decode(encoded[0]).astype(bool)


def _attributes(rng: np.random.Generator, placed: list[SceneObject], style: SceneStyle) -> dict[str, str]:
    """Attributes of a new object: fresh, or those of a placed object but for one."""
    choices = {
        "shape": SHAPES,
        "colour": tuple(COLOURS),
        "pattern": PATTERNS,
        "size": tuple(SIZES),
    }
    fresh = {name: str(values[rng.integers(len(values))]) for name, values in choices.items()}
    if rng.random() < 0.5:
        fresh["pattern"] = "plain"
    if not placed or rng.random() >= style.distractor_probability:
        return fresh
    model = placed[rng.integers(len(placed))]
    changed = ("shape", "colour", "pattern", "size", "")[rng.integers(5)]
    copied = {name: getattr(model, name) for name in choices}
    if changed:
        others = [value for value in choices[changed] if value != copied[changed]]
        copied[changed] = str(others[rng.integers(len(others))])
    return copied


def _place_objects(
    rng: np.random.Generator, style: SceneStyle, required: tuple[str, ...]
) -> tuple[list[SceneObject], list[np.ndarray]]:
    low, high = style.num_objects
    wanted = int(rng.integers(low, high + 1))
    objects: list[SceneObject] = []
    masks: list[np.ndarray] = []
    visible: list[np.ndarray] = []
    areas: list[int] = []
    for attempt in range(40 * wanted):
        if len(objects) == wanted or (len(objects) >= low and attempt > 20 * wanted):
            break
        attributes = _attributes(rng, objects, style)
        if not objects and attributes["shape"] not in required:
            attributes["shape"] = str(required[rng.integers(len(required))])
        radius = float(rng.uniform(*SIZES[attributes["size"]]))
        x, y = rng.uniform(radius * 0.9, SCENE_SIZE_PX - radius * 0.9, size=2)
        may_overlap = rng.random() < style.overlap_probability
        closest = 0.55 if may_overlap else 1.02
        if any(
            np.hypot(x - other.centre_xy_px[0], y - other.centre_xy_px[1])
            < closest * (radius + other.radius_px)
            for other in objects
        ):
            continue
        angle = float(rng.uniform(-MAX_ROTATION_DEG, MAX_ROTATION_DEG))
        item = SceneObject(
            radius_px=radius,
            angle_deg=angle,
            centre_xy_px=(float(x), float(y)),
            **attributes,
        )
        mask_HW = rasterise(item)
        left = [old & ~mask_HW for old in visible]
        if any(part.sum() < style.min_visible * area for part, area in zip(left, areas, strict=True)):
            continue
        objects.append(item)
        masks.append(mask_HW)
        visible = [*left, mask_HW]
        areas.append(int(mask_HW.sum()))
    return objects, masks


def _background(rng: np.random.Generator, style: SceneStyle) -> np.ndarray:
    """A muted background, int16 [H, W, 3]."""
    kind = style.backgrounds[rng.integers(len(style.backgrounds))]
    size = SCENE_SIZE_PX
    base = rng.uniform(60, 215) + rng.uniform(-22, 22, size=3)
    if kind == "flat":
        return np.broadcast_to(base, (size, size, 3)).astype(np.int16)
    other = np.clip(base + rng.uniform(-60, 60) + rng.uniform(-15, 15, size=3), 20, 245)
    if kind == "gradient":
        angle = rng.uniform(0, 2 * np.pi)
        y, x = np.mgrid[0:size, 0:size] / size - 0.5
        mix_HW = np.clip(0.5 + np.cos(angle) * x + np.sin(angle) * y, 0, 1)
    else:
        cells = int(rng.choice((4, 8, 16, 32)))
        coarse = rng.random((cells, cells))
        mix_HW = np.kron(coarse, np.ones((size // cells, size // cells)))
        if rng.random() < 0.6:
            mix_HW = _smooth(mix_HW, size // cells // 2)
    return (base + mix_HW[..., None] * (other - base)).astype(np.int16)


def _smooth(field_HW: np.ndarray, radius: int) -> np.ndarray:
    """Box blur with wrap-around borders."""
    if radius < 1:
        return field_HW
    width = 2 * radius + 1
    for axis in (0, 1):
        padded = np.concatenate(
            [
                np.take(field_HW, range(-radius, 0), axis),
                field_HW,
                np.take(field_HW, range(radius), axis),
            ],
            axis,
        )
        sums = np.cumsum(padded, axis=axis)
        zero = np.zeros_like(np.take(sums, [0], axis))
        sums = np.concatenate([zero, sums], axis)
        size = field_HW.shape[axis]
        field_HW = (
            np.take(sums, range(width, width + size), axis) - np.take(sums, range(size), axis)
        ) / width
    return field_HW


def _paint(
    image_HW3: np.ndarray,
    item: SceneObject,
    mask_HW: np.ndarray,
    rng: np.random.Generator,
) -> None:
    """Fill the object's pixels in place."""
    colour = np.array(COLOURS[item.colour]) + rng.integers(-COLOUR_JITTER, COLOUR_JITTER + 1, size=3)
    rows, columns = np.nonzero(mask_HW)
    x, y = columns - item.centre_xy_px[0], rows - item.centre_xy_px[1]
    fill = np.broadcast_to(colour, (len(rows), 3)).astype(np.float32)
    if item.pattern == "striped":
        angle = rng.uniform(0, np.pi)
        period = max(4.5, item.radius_px / 2.6)
        dark = ((x * np.cos(angle) + y * np.sin(angle)) / period) % 1.0 < 0.5
        fill = np.where(dark[:, None], fill * 0.42, fill)
    elif item.pattern == "dotted":
        period = max(5.0, item.radius_px / 2.2)
        near = np.hypot((x / period) % 1.0 - 0.5, (y / period) % 1.0 - 0.5) < 0.3
        fill = np.where(near[:, None], 250.0, fill)
    shading = 1.0 + rng.uniform(-0.12, 0.12) * (x + y)[:, None] / item.radius_px
    image_HW3[rows, columns] = np.clip(fill * shading, 0, 255).astype(np.int16)
