"""An independent reader of expressions: text and ground truth in, the objects meant out.

It shares no code with the generator but the scene records: attribute words are looked up in tables written here, and
places and relations are resolved by comparing positions, without the generator's margins.
"""

import re

from shared.synth.scenes import Scene

SIZE = {
    "small": "small",
    "little": "small",
    "tiny": "small",
    "large": "large",
    "big": "large",
    "huge": "large",
}
PATTERN = {
    "plain": "plain", "solid": "plain", "striped": "striped", "stripy": "striped", "dotted": "dotted",
    "spotted": "dotted",
}  # fmt: skip
COLOUR = {c: c for c in ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")}
SHAPE = {
    "circle": "circle", "disc": "circle", "ring": "ring", "donut": "ring", "oval": "oval", "ellipse": "oval",
    "crescent": "crescent", "moon": "crescent", "heart": "heart", "square": "square", "box": "square",
    "triangle": "triangle", "star": "star", "diamond": "diamond", "rhombus": "diamond", "cross": "cross",
    "plus": "cross", "pentagon": "pentagon",
}  # fmt: skip
PLACE = {"left": (0, -1), "leftmost": (0, -1), "right": (0, 1), "rightmost": (0, 1), "top": (1, -1), "upper": (1, -1),
         "bottom": (1, 1), "lower": (1, 1)}  # fmt: skip
RELATIONS = {
    "above": (1, -1), "over": (1, -1), "below": (1, 1), "under": (1, 1), "beneath": (1, 1), "to the left of": (0, -1),
    "left of": (0, -1), "to the right of": (0, 1), "right of": (0, 1), "next to": None, "beside": None,
    "closest to": None,
}  # fmt: skip


def candidates(scene: Scene, phrase: str) -> list[int]:
    """Objects whose attributes fit every attribute word of the phrase."""
    found = list(range(len(scene.objects)))
    for word in phrase.split():
        for name, table in (("size", SIZE), ("pattern", PATTERN), ("colour", COLOUR), ("shape", SHAPE)):
            if word in table:
                found = [i for i in found if getattr(scene.objects[i], name) == table[word]]
    return found


def meant(scene: Scene, text: str) -> list[int]:
    """Objects the expression can mean."""
    text = re.sub(r"\b(of|in) the (picture|scene)\b", "", text)
    for words in sorted(RELATIONS, key=len, reverse=True):
        if re.search(rf"\b{words}\b", text):
            target, anchor = re.split(rf"\b{words}\b", text, maxsplit=1)
            return _related(scene, target, anchor, RELATIONS[words])
    found = candidates(scene, text)
    at = {i: scene.objects[i].centre_xy_px for i in found}
    if re.search(r"\b(largest|biggest)\b", text):
        return [max(found, key=lambda i: scene.objects[i].radius_px)] if found else []
    if re.search(r"\b(smallest|littlest)\b", text):
        return [min(found, key=lambda i: scene.objects[i].radius_px)] if found else []
    if re.search(r"\b(middle|center)\b", text):
        return [min(found, key=lambda i: max(abs(at[i][0] - 64), abs(at[i][1] - 64)))] if found else []
    sides = [PLACE[word] for word in re.sub(r"\bon top\b", "top", text).split() if word in PLACE]
    if len(sides) == 1:
        axis, sign = sides[0]
        return [max(found, key=lambda i: at[i][axis] * sign)] if found else []
    if len(sides) == 2:
        return [i for i in found if all((at[i][axis] - 64) * sign > 0 for axis, sign in sides)]
    return found


def _related(scene: Scene, target: str, anchor: str, direction: tuple[int, int] | None) -> list[int]:
    anchors = candidates(scene, anchor)
    assert len(anchors) == 1, f"anchor {anchor!r} is ambiguous"
    origin = scene.objects[anchors[0]].centre_xy_px
    found = [i for i in candidates(scene, target) if i != anchors[0]]
    offsets = {i: [a - b for a, b in zip(scene.objects[i].centre_xy_px, origin, strict=True)] for i in found}
    if direction is None:
        return [min(found, key=lambda i: offsets[i][0] ** 2 + offsets[i][1] ** 2)] if found else []
    axis, sign = direction
    return [i for i in found if offsets[i][axis] * sign > 0]
