"""Standalone charts: colours where every reader finds them, and others for a dark system alone."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from shared.svg import SERIES, head, look

ROOT = Path(__file__).parents[2]
PICTURES = ("stage2_train/grids/embedded-robustness.svg", "tests/bench/peers.svg")
SVG = "{http://www.w3.org/2000/svg}"


def chart() -> ET.Element:
    series = "".join(
        f"<circle {look(f'f{i}')} r='1'/><line {look('spread', f'l{i}')}/>" for i in range(SERIES)
    )
    return ET.fromstring(
        head(80, 40.5, "a < b", 'c & "d"') + f"<text {look('muted', 'end')}>e</text>{series}</svg>"
    )


def test_without_a_style_sheet_everything_has_its_colour() -> None:
    root = chart()
    assert root.get("fill") == "#1b1f23" and root.get("viewBox") == "0 0 80 40.5"
    (text,) = root.iter(f"{SVG}text")
    assert (text.get("fill"), text.get("text-anchor"), text.get("class")) == ("#57606a", "end", "muted end")
    assert len({one.get("fill") for one in root.iter(f"{SVG}circle")}) == SERIES
    assert len({one.get("stroke") for one in root.iter(f"{SVG}line")}) == SERIES
    assert [one.text for one in root[:2]] == ["a < b", 'c & "d"']


def test_the_style_sheet_is_for_the_dark_alone_and_knows_every_class() -> None:
    (sheet,) = chart().iter(f"{SVG}style")
    rules = (sheet.text or "").strip()
    assert re.fullmatch(r"@media \(prefers-color-scheme: dark\) \{[^{}]*(\{[^{}]*\}[^{}]*)*\}", rules)
    assert "var(" not in rules
    for name in ("bg", "band", "muted", "grid", "span", "prior", "f0", "l6"):
        assert re.search(rf"\.{name} {{ (fill|stroke): #\w+; }}", rules)


@pytest.mark.parametrize("name", PICTURES)
def test_the_pictures_of_the_readme_are_drawn_so(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    assert "var(" not in text
    for one in ET.fromstring(text).iter():
        classes = (one.get("class") or "").split()
        painted = look(*classes) if classes else ""
        assert all(one.get(key) == value for key, value in re.findall(r'([\w-]+)="([^"]*)"', painted)), (
            classes
        )


def test_an_unknown_class_is_refused() -> None:
    with pytest.raises(KeyError):
        look("pirate")
