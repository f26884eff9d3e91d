"""The chart of a grid, read back as XML."""

import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from stage2_train.ablate_chart import CHARACTER, draw

SVG = "{http://www.w3.org/2000/svg}"


def row(
    arm: str, fraction: float, mean: float, sd: float | None = 0.01, split: str = "val"
) -> dict[str, Any]:
    return {
        "arm": arm,
        "label": arm.replace("labelled", "With a label"),
        "fraction": fraction,
        "label_share": fraction,
        "split": split,
        "frame": "original",
        "metric": "oiou",
        "mean": mean,
        "sd": sd,
    }


def answer(*rows: dict[str, Any], prior: float | None = None) -> dict[str, Any]:
    splits = {one["split"] for one in rows}
    priors = {split: {"original": {"oiou": prior}} for split in splits}
    return {"rows": list(rows), "prior": {} if prior is None else {"frozen prior alone": priors}}


def drawn(*rows: dict[str, Any], prior: float | None = None) -> ET.Element:
    text = draw(answer(*rows, prior=prior))
    assert text is not None
    return ET.fromstring(text)


def texts(root: ET.Element) -> list[str]:
    return [one.text or "" for one in root.iter(f"{SVG}text")]


def classed(root: ET.Element, name: str) -> list[ET.Element]:
    return [one for one in root.iter() if name in (one.get("class") or "").split()]


def path_points(root: ET.Element, series: int) -> list[tuple[float, float]]:
    (path,) = [one for one in classed(root, "line") if f"l{series}" in (one.get("class") or "").split()]
    numbers = [float(value) for value in re.findall(r"-?[\d.]+", path.get("d") or "")]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def test_lines_over_the_shares_of_labels() -> None:
    root = drawn(
        row("blend", 0.05, 0.70),
        row("blend", 0.001, 0.60),
        row("l2l", 0.001, 0.65, sd=None),
        row("l2l", 0.05, 0.71),
        prior=0.61,
    )
    blend, l2l = path_points(root, 0), path_points(root, 1)
    assert [x for x, _ in blend] == sorted(x for x, _ in blend)  # by rising share, whatever the rows' order
    assert blend[0][1] > l2l[0][1] > blend[1][1] > l2l[1][1]  # higher scores stand higher
    scale = (blend[0][1] - blend[1][1]) / 0.10
    (prior,) = classed(root, "prior")
    assert abs(float(prior.get("y1") or 0) - (blend[0][1] - 0.01 * scale)) < 0.2
    spreads = classed(root, "spread")
    assert len(spreads) == 3  # a single seed has none
    for one in spreads:
        height = float(one.get("y1") or 0) - float(one.get("y2") or 0)
        assert abs(height - 0.02 * scale) < 0.25
    assert {"0.1%", "5%", "labelled images", "blend", "l2l", "val", "dashed: the frozen prior alone"} <= set(
        texts(root)
    )
    assert blend[0][0] != l2l[0][0], "nor does one bar hide the other"
    (words,) = root.iter(f"{SVG}desc")
    assert (
        words.text
        == "val: frozen prior alone 0.610; blend 0.600 at 0.1%, 0.700 at 5%; l2l 0.650 at 0.1%, 0.710 at 5%."
    )


def test_lines_over_overrides_are_one_a_method() -> None:
    rows = [
        row(f"{method}+wrong-{share}", 0.01, 0.7 - share / 500, split=split)
        for split in ("val", "testA")
        for method in ("blend", "l2l")
        for share in (0, 10, 30)
    ]
    root = drawn(*rows)
    assert len(classed(root, "line")) == 4
    assert not classed(root, "prior")
    shown = texts(root)
    assert shown.count("override: wrong") == 2, "a title below each axis"
    assert shown.count("wrong-10") == 2 and "blend" in shown and "blend+wrong-0" not in shown


def test_a_row_a_method_where_there_is_one_share() -> None:
    root = drawn(row("a<b", 0.01, 0.5), row("other", 0.01, 0.6), prior=0.55)
    markers = list(root.iter(f"{SVG}circle"))
    assert len(markers) == 2 and not classed(root, "line")
    left, right = (float(one.get("cx") or 0) for one in markers)
    (prior,) = classed(root, "prior")
    assert left < float(prior.get("x1") or 0) < right
    assert "a<b" in texts(root)


@pytest.mark.parametrize("fractions", [(0.01,), (0.01, 0.05)])
def test_splits_stand_side_by_side_and_a_method_looks_alike_in_all(fractions: tuple[float, ...]) -> None:
    """The first of them has no score on the second split, and the prior none either."""
    rows = [
        row(name, fraction, 0.6, split=split)
        for name, split in (("blend", "val"), ("l2l", "val"), ("l2l", "testA"))
        for fraction in fractions
    ]
    prior = {"frozen prior alone": {"val": {"original": {"oiou": 0.55}}}}
    root = ET.fromstring(draw({"rows": rows, "prior": prior}) or "")
    titles = {one.text: float(one.get("x") or 0) for one in classed(root, "strong")}
    middle = titles["testA"]
    assert titles["val"] < middle and len(classed(root, "prior")) == 1
    bars = classed(root, "spread")
    left = [one for one in bars if max(float(one.get("x1") or 0), float(one.get("x2") or 0)) < middle]
    right = [one for one in bars if min(float(one.get("x1") or 0), float(one.get("x2") or 0)) > middle]
    assert (len(left), len(right)) == (2 * len(fractions), len(fractions))
    if len(fractions) == 1:
        assert right[0].get("y1") == left[1].get("y1") != left[0].get("y1")
        return
    for here in (classed(root, "line"), bars):
        looks = [(one.get("class") or "").split()[-1] for one in here]
        assert set(looks) == {"l0", "l1"} and looks[-1] == "l1"
    values = [text for text in texts(root) if re.fullmatch(r"0\.\d+", text)]
    assert values and len(values) == len(set(values)), "said once, on the left"


def test_all_is_to_scale_and_other_scores_are_left_out() -> None:
    """The axis reaches to a prior far below all methods; a single figure has an axis as well."""
    rows = [row("l2l", 0.01, 0.6, sd=None), row("l2l", 0.05, 0.7, sd=None)]
    root = drawn(*rows, prior=0.2)
    low, high = (y for _, y in path_points(root, 0))
    (prior,) = classed(root, "prior")
    assert float(prior.get("y1") or 0) - low == pytest.approx(4 * (low - high), abs=1)
    others = [{**rows[0], "frame": "model", "mean": 0.1}, {**rows[1], "metric": "miou", "mean": 0.9}]
    assert draw(answer(*rows, *others)) == draw(answer(*rows))
    (alone,) = drawn(rows[0]).iter(f"{SVG}circle")
    assert float(alone.get("cx") or 0) > 0


def test_names_do_not_lie_over_one_another() -> None:
    """Overrides below the axis, methods in the legend over the panels; and more than colour tells methods apart."""
    methods = [f"a-method-with-a-long-name-{number}" for number in range(7)]
    overrides = [f"an-override-with-a-long-name-{number}" for number in range(4)]
    root = drawn(*(row(f"{name}+{one}", 0.01, 0.5) for name in methods for one in overrides))
    boxes = []
    for one in root.iter(f"{SVG}text"):
        x, wide = float(one.get("x") or 0), CHARACTER * len(one.text or "")
        kinds = (one.get("class") or "").split()
        start = x - (wide if "end" in kinds else wide / 2 if "mid" in kinds else 0)
        boxes.append((start, start + wide, float(one.get("y") or 0), one.text))
    for number, (start, stop, y, text) in enumerate(boxes):
        for other_start, other_stop, other_y, other in boxes[:number]:
            assert stop <= other_start or other_stop <= start or abs(y - other_y) >= 11, (text, other)
    shapes = [re.sub(r"^M[\d.]+ [\d.]+", "", one.get("d") or "disc") for one in root.iter() if one.tag in
              (f"{SVG}circle", f"{SVG}path") and "line" not in (one.get("class") or "").split()]  # fmt: skip
    assert len(set(shapes)) == 4


def test_a_method_with_and_without_an_override_is_two_lines() -> None:
    rows = [row(arm, fraction, 0.5) for arm in ("l2l", "l2l+flip") for fraction in (0.01, 0.05)]
    root = drawn(*rows)
    assert len(classed(root, "line")) == 2 and {"l2l", "l2l+flip"} <= set(texts(root))
    assert "l2l+flip" in texts(drawn(row("l2l+flip", 0.01, 0.5)))


def test_nothing_reaches_out_of_the_picture() -> None:
    names = [f"a-method-with-quite-a-long-name-{number}" for number in range(9)]
    for fractions in ((0.01,), (0.001, 0.01, 0.05, 0.1)):
        root = drawn(*(row(name, fraction, 0.5, sd=0.2) for name in names for fraction in fractions))
        _, _, width, height = map(float, (root.get("viewBox") or "").split())
        for one in root.iter(f"{SVG}text"):
            x, y, long = float(one.get("x") or 0), float(one.get("y") or 0), CHARACTER * len(one.text or "")
            kinds = (one.get("class") or "").split()
            start = x - (long if "end" in kinds else long / 2 if "mid" in kinds else 0)
            assert 0 <= start and start + long <= width + 1 and 0 < y < height, one.text
        for one in classed(root, "spread"):
            assert all(0 < float(one.get(key) or 0) < width for key in ("x1", "x2"))
            assert all(0 < float(one.get(key) or 0) < height for key in ("y1", "y2"))


def test_a_bar_that_is_longer_than_the_axis_ends_with_it() -> None:
    for fractions in ((0.01,), (0.01, 0.05)):
        rows = [
            row(name, fraction, mean, sd=0.1)
            for name, mean in (("low", 0.02), ("high", 0.98))
            for fraction in fractions
        ]
        root = drawn(*rows)
        axes = ("x1", "x2") if len(fractions) == 1 else ("y1", "y2")
        grid, bars = (
            [float(one.get(key) or 0) for one in classed(root, name) for key in axes]
            for name in ("grid", "spread")
        )
        assert min(bars) == min(grid) and max(bars) == max(grid)  # ticks stand at 0 and 1


def test_no_chart_without_a_finished_run_and_the_numbers_in_words() -> None:
    assert draw(answer()) is None
    (words,) = drawn(row("l2l", 0.01, 0.6541), prior=0.61).iter(f"{SVG}desc")
    assert words.text == "val: frozen prior alone 0.610; l2l 0.654."


@pytest.mark.parametrize("fractions", [(0.01,), (0.01, 0.05)])
def test_of_several_priors_each_line_has_a_letter(fractions: tuple[float, ...]) -> None:
    long = "SAM 2 of " + 12 * "very " + "many parameters"
    priors = {f"frozen prior alone ({name})": {"val": {"original": {"oiou": value}}}
              for name, value in (("boxes & co", 0.5), (long, 0.6))}  # fmt: skip
    rows = [row("l2l", fraction, 0.7) for fraction in fractions]
    root = ET.fromstring(draw({"rows": rows, "prior": priors}) or "")
    assert len(classed(root, "prior")) == 2
    shown = texts(root)
    assert shown.count("a") == shown.count("b") == 1
    said = {one.text: float(one.get("y") or 0) for one in root.iter(f"{SVG}text")}
    first, second = "dashed a: frozen prior alone (boxes & co)", f"dashed b: frozen prior alone ({long})"
    assert said[first] + 11 < said[second]
    _, _, width, height = map(float, (root.get("viewBox") or "").split())
    for one in root.iter(f"{SVG}text"):
        assert float(one.get("y") or 0) < height
        assert (
            float(one.get("x") or 0) + (CHARACTER * len(one.text or "") if one.get("x") == "14" else 0)
            <= width
        )


def test_methods_are_called_by_their_labels() -> None:
    assert "With a label" in texts(drawn(row("labelled", 0.01, 0.5)))
    shown = texts(drawn(row("labelled+a", 0.01, 0.5), row("labelled+b", 0.01, 0.6)))
    assert shown.count("With a label") == 1 and {"a", "b"} <= set(shown)
