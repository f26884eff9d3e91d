"""Options and run folders of the scripts that retrain the embedded models."""

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from shared.errors import DataError
from shared.retraining import parse_arguments, training_folder


@dataclass(frozen=True, kw_only=True)
class Recipe:
    steps: int = 3


def test_a_run_of_another_recipe_is_refused(tmp_path: Path) -> None:
    folder, recipe = training_folder(Recipe(), tmp_path / "model")
    assert folder.is_dir() and recipe == {"steps": 3}
    assert training_folder(Recipe(), tmp_path / "model") == (folder, recipe)
    with pytest.raises(DataError, match="another recipe"):
        training_folder(Recipe(steps=4), tmp_path / "model")


def test_options(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["train", "--minutes", "2.5"])
    found = parse_arguments("x", 7, Path("there"))
    assert (found.minutes, found.steps, found.out) == (2.5, 7, Path("there"))
    monkeypatch.setattr(sys, "argv", ["train", "--minutes", "nan"])
    with pytest.raises(SystemExit):
        parse_arguments("x", 7, Path("there"))
    assert "must be finite" in capsys.readouterr().err
