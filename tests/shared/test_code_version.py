"""The hash of the code: equal for equal files, another for any change to them."""

from importlib.metadata import version
from pathlib import Path

import pytest

import shared.code_version as module


@pytest.fixture
def hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "one" / "sub").mkdir(parents=True)
    (tmp_path / "two").mkdir()
    (tmp_path / "one" / "a.py").write_text("A = 1\n")
    (tmp_path / "one" / "sub" / "b.py").write_text("B = 1\n")
    (tmp_path / "two" / "c.py").write_text("C = 1\n")
    monkeypatch.setattr(module, "ROOT", tmp_path)

    def hash_now(*packages: str, without: tuple[str, ...] = ()) -> str:
        module._hash_of.cache_clear()
        return module.code_version(packages, without)["sources"]

    yield hash_now
    module._hash_of.cache_clear()


def test_any_change_of_the_sources_shows(hashed, tmp_path: Path) -> None:
    before = hashed("one", "two")
    assert len(before) == 12 and hashed("two", "one") == before
    (tmp_path / "one" / "notes.txt").write_text("no code")
    assert hashed("one", "two") == before
    (tmp_path / "one" / "sub" / "b.py").write_text("B = 2\n")
    changed = hashed("one", "two")
    assert changed != before and hashed("two") not in (before, changed)
    (tmp_path / "one" / "a.py").rename(tmp_path / "one" / "d.py")
    assert hashed("one", "two") not in (before, changed)


def test_what_does_not_count(hashed, tmp_path: Path) -> None:
    before = hashed("one", "two"), hashed("one", without=("one/sub/",))
    (tmp_path / "one" / ".#a.py").symlink_to("somebody@somewhere")  # Emacs, while a file is edited
    (tmp_path / "one" / "sub" / "b.py").write_text("B = 2\n")
    assert hashed("one", without=("one/sub/",)) == before[1] != hashed("one")
    (tmp_path / "one" / "sub" / "b.py").write_text("B = 1\n")
    assert hashed("one", "two") == before[0]


def test_this_project_says_its_version() -> None:
    said = module.code_version(("shared", "stage2_train"))
    assert said["version"] == version("l2l") and said["sources"].isalnum()
