"""Referring expressions for drawn scenes, unambiguous by construction.

An expression is proposed from the scene's ground truth and kept only if exactly one object satisfies it with a
margin (words of size have gaps between them, words of place need `MARGIN_PX` between the object and its rivals).

Flavours mirror the real data sets: `refshapes` (RefCOCO: short, places allowed), `refshapes+` (RefCOCO+: appearance
only) and `refshapesg` (RefCOCOg: long, relational).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from shared.errors import DataError
from shared.synth.scenes import COLOURS, SCENE_SIZE_PX, Scene, SceneObject

FLAVOURS: tuple[str, ...] = ("refshapes", "refshapes+", "refshapesg")

KINDS: tuple[str, ...] = ("attribute", "location", "superlative", "relation")

MARGIN_PX = 8.0
"""Least distance along an axis between the object meant and its nearest rival."""

_SHAPE_WORDS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "disc"),
    "ring": ("ring", "donut"),
    "oval": ("oval", "ellipse"),
    "crescent": ("crescent", "moon"),
    "heart": ("heart",),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "diamond": ("diamond", "rhombus"),
    "cross": ("cross", "plus"),
    "pentagon": ("pentagon",),
}
_SIZE_WORDS = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium",),
    "large": ("large", "big", "huge"),
}
_PATTERN_WORDS = {
    "plain": ("plain", "solid"),
    "striped": ("striped", "stripy"),
    "dotted": ("dotted", "spotted"),
}
_ANY_WORDS = ("object", "shape", "thing")
_PLACE_FORMS: dict[str, tuple[str, ...]] = {
    "left": (
        "left {p}",
        "far left {p}",
        "leftmost {p}",
        "{p} on the left",
        "{p} on the far left",
    ),
    "right": (
        "right {p}",
        "far right {p}",
        "rightmost {p}",
        "{p} on the right",
        "{p} on the far right",
    ),
    "top": ("top {p}", "upper {p}", "{p} at the top", "{p} on top"),
    "bottom": ("bottom {p}", "lower {p}", "{p} at the bottom", "{p} on the bottom"),
}
_CORNER_FORMS = ("{v} {h} {p}", "{p} {v} {h}", "{p} in the {v} {h} corner")
_MIDDLE_FORMS = ("middle {p}", "center {p}", "{p} in the middle", "{p} in the center")
_LARGEST = ("largest {p}", "biggest {p}")
_SMALLEST = ("smallest {p}", "littlest {p}")
_RELATION_WORDS: dict[str, tuple[str, ...]] = {
    "above": ("above", "over"),
    "below": ("below", "under", "beneath"),
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "near": ("next to", "beside", "closest to"),
}
_RELATION_FORMS = (
    "the {t} {r} the {a}",
    "the {t} that is {r} the {a}",
    "a {t} which is {r} the {a}",
    "{t} {r} the {a}",
)
_LONG_FORMS = (
    "the {p} in the picture",
    "the {p} in the scene",
    "a {p} that stands out",
    "there is one {p}",
)
_CORNER_LONG = "the {p} that is in the {v} {h} of the picture"

VOCABULARY: tuple[str, ...] = tuple(
    sorted(
        {
            word
            for text in (
                *(
                    w
                    for words in (
                        _SHAPE_WORDS,
                        _SIZE_WORDS,
                        _PATTERN_WORDS,
                        _RELATION_WORDS,
                    )
                    for v in words.values()
                    for w in v
                ),
                *COLOURS,
                *_ANY_WORDS,
                *(form for forms in _PLACE_FORMS.values() for form in forms),
                *_CORNER_FORMS,
                *_MIDDLE_FORMS,
                *_LARGEST,
                *_SMALLEST,
                *_RELATION_FORMS,
                *_LONG_FORMS,
                _CORNER_LONG,
                "left right top bottom upper lower",
            )
            for word in text.split()
            if not word.startswith("{")
        }
    )
)
"""Every word an expression can contain, sorted."""


_KIND_DRAWS, _TRIES_PER_KIND = 6, 6
"""How often a kind is drawn for each wanted expression, and how often one kind is tried before another is drawn."""


@dataclass(frozen=True, kw_only=True)
class Expression:
    """One expression and how it singles its object out."""

    text: str
    """Lower-case words."""
    kind: str
    """One of `KINDS`."""


def describe(
    scene: Scene, index: int, flavour: str, rng: np.random.Generator, num: int = 1
) -> list[Expression]:
    """Describe one object.

    Args:
        scene: The scene.
        index: Which object is meant.
        flavour: One of `FLAVOURS`.
        rng: Source of every choice.
        num: How many different expressions are wanted.

    Returns:
        Up to `num` different expressions; fewer, possibly none, where the object cannot be told from its rivals.

    Raises:
        DataError: Unknown flavour.
    """
    if flavour not in _FLAVOUR_KINDS:
        raise DataError(f"flavour {flavour!r} is not one of {', '.join(FLAVOURS)}")
    kinds, weights = _FLAVOUR_KINDS[flavour]
    found: dict[str, Expression] = {}
    for _ in range(_KIND_DRAWS * num):
        if len(found) == num:
            break
        kind = kinds[int(rng.choice(len(kinds), p=weights))]
        texts = (_PROPOSERS[kind](scene, index, rng, flavour) for _ in range(_TRIES_PER_KIND))
        text = next((text for text in texts if text), None)
        if text and text not in found:
            found[text] = Expression(text=text, kind=kind)
    return list(found.values())


def _matching(objects: Iterable[SceneObject], attributes: dict[str, str]) -> list[int]:
    return [
        i
        for i, o in enumerate(objects)
        if all(getattr(o, name) == value for name, value in attributes.items())
    ]


def _choice(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _some_attributes(
    item: SceneObject, rng: np.random.Generator, chances: dict[str, float]
) -> dict[str, str]:
    """A random subset of the object's attributes; 'medium' and usually 'plain' go without saying."""
    chosen = {name: str(getattr(item, name)) for name, chance in chances.items() if rng.random() < chance}
    if chosen.get("size") == "medium":
        del chosen["size"]
    if chosen.get("pattern") == "plain" and rng.random() < 0.7:
        del chosen["pattern"]
    return chosen


def _phrase(attributes: dict[str, str], rng: np.random.Generator) -> str:
    words = []
    if "size" in attributes:
        words.append(_choice(rng, _SIZE_WORDS[attributes["size"]]))
    if "pattern" in attributes:
        words.append(_choice(rng, _PATTERN_WORDS[attributes["pattern"]]))
    if "colour" in attributes:
        words.append(attributes["colour"])
    words.append(
        _choice(
            rng,
            _SHAPE_WORDS[attributes["shape"]] if "shape" in attributes else _ANY_WORDS,
        )
    )
    return " ".join(words)


_FULL = {"size": 0.4, "pattern": 0.4, "colour": 0.75, "shape": 0.85}
_LOOSE = {"size": 0.1, "pattern": 0.1, "colour": 0.45, "shape": 0.6}


def _attribute(scene: Scene, index: int, rng: np.random.Generator, flavour: str) -> str | None:
    chances = (
        {"size": 0.7, "pattern": 0.7, "colour": 0.95, "shape": 0.95} if flavour == "refshapesg" else _FULL
    )
    attributes = _some_attributes(scene.objects[index], rng, chances)
    if not attributes or _matching(scene.objects, attributes) != [index]:
        return None
    phrase = _phrase(attributes, rng)
    return _choice(rng, _LONG_FORMS).format(p=phrase) if flavour == "refshapesg" else phrase


def _location(scene: Scene, index: int, rng: np.random.Generator, flavour: str) -> str | None:
    attributes = _some_attributes(scene.objects[index], rng, _LOOSE)
    rivals = [i for i in _matching(scene.objects, attributes) if i != index]
    if not rivals and rng.random() < 0.6:
        return None  # prefer places where the place is needed
    phrase = _phrase(attributes, rng)
    centres = np.array([item.centre_xy_px for item in scene.objects]) - SCENE_SIZE_PX / 2
    own, others = centres[index], centres[rivals]
    middle = np.abs(own).max() < 0.16 * SCENE_SIZE_PX
    if middle and all(np.abs(other).max() > 0.26 * SCENE_SIZE_PX for other in others):
        text = _choice(rng, _MIDDLE_FORMS).format(p=phrase)
        return f"the {text} of the picture" if flavour == "refshapesg" else text
    corner = bool(np.abs(own).min() > 0.17 * SCENE_SIZE_PX)
    signs = np.sign(own)
    if corner and (rng.random() < 0.5 or flavour == "refshapesg"):
        reach = (others * signs).min(axis=1) if len(others) else np.zeros(0)
        if (reach > -0.08 * SCENE_SIZE_PX).any():
            return None
        form = _CORNER_LONG if flavour == "refshapesg" else _choice(rng, _CORNER_FORMS)
        vertical = _choice(rng, ("top", "upper") if signs[1] < 0 else ("bottom", "lower"))
        return form.format(p=phrase, v=vertical, h="left" if signs[0] < 0 else "right")
    axis = int(rng.integers(2))
    sign = signs[axis]
    if (
        own[axis] * sign < 0.06 * SCENE_SIZE_PX
        or (others[:, axis] * sign > own[axis] * sign - MARGIN_PX).any()
    ):
        return None
    side = (("left", "right"), ("top", "bottom"))[axis][int(sign > 0)]
    text = _choice(rng, _PLACE_FORMS[side]).format(p=phrase)
    return f"the {text} of the picture" if flavour == "refshapesg" else text


def _superlative(scene: Scene, index: int, rng: np.random.Generator, flavour: str) -> str | None:
    attributes = _some_attributes(scene.objects[index], rng, {"pattern": 0.15, "colour": 0.4, "shape": 0.6})
    rivals = [i for i in _matching(scene.objects, attributes) if i != index]
    if not rivals:
        return None
    own, others = (
        scene.objects[index].radius_px,
        np.array([scene.objects[i].radius_px for i in rivals]),
    )
    phrase = _phrase(attributes, rng)
    text = None
    if (own > 1.2 * others).all():
        text = _choice(rng, _LARGEST).format(p=phrase)
    elif (own * 1.2 < others).all():
        text = _choice(rng, _SMALLEST).format(p=phrase)
    return f"the {text} in the picture" if text and flavour == "refshapesg" else text


def _relation(scene: Scene, index: int, rng: np.random.Generator, flavour: str) -> str | None:
    anchor = int(rng.integers(len(scene.objects)))
    anchor_attributes = _some_attributes(scene.objects[anchor], rng, _FULL)
    if anchor == index or not anchor_attributes or _matching(scene.objects, anchor_attributes) != [anchor]:
        return None
    attributes = _some_attributes(scene.objects[index], rng, _LOOSE)
    rivals = [i for i in _matching(scene.objects, attributes) if i not in (index, anchor)]
    if not rivals and rng.random() < 0.5:
        return None
    centres = np.array([item.centre_xy_px for item in scene.objects])
    offset = centres - centres[anchor]
    distance = np.hypot(offset[:, 0], offset[:, 1])
    if rng.random() < 0.3:
        gap = distance[index] - scene.objects[index].radius_px - scene.objects[anchor].radius_px
        if gap > 20 or any(distance[i] < distance[index] + 1.5 * MARGIN_PX for i in rivals):
            return None
        relation = "near"
    else:
        axis = int(np.abs(offset[index, 1]) > np.abs(offset[index, 0]))
        sign = np.sign(offset[index, axis])
        along, across = abs(offset[index, axis]), abs(offset[index, 1 - axis])
        if along < 14 or across > 0.75 * along or any(offset[i, axis] * sign > -2.0 for i in rivals):
            return None
        relation = (("left", "right"), ("above", "below"))[axis][int(sign > 0)]
    form = _choice(rng, _RELATION_FORMS)
    word = _choice(rng, _RELATION_WORDS[relation])
    return form.format(t=_phrase(attributes, rng), r=word, a=_phrase(anchor_attributes, rng))


_PROPOSERS: dict[str, Callable[[Scene, int, np.random.Generator, str], str | None]] = {
    "attribute": _attribute,
    "location": _location,
    "superlative": _superlative,
    "relation": _relation,
}
_FLAVOUR_KINDS: dict[str, tuple[tuple[str, ...], tuple[float, ...]]] = {
    "refshapes": (("attribute", "location", "superlative"), (0.35, 0.5, 0.15)),
    "refshapes+": (("attribute", "superlative"), (0.75, 0.25)),
    "refshapesg": (
        ("relation", "attribute", "location", "superlative"),
        (0.65, 0.15, 0.12, 0.08),
    ),
}
