"""Files that appear whole or not at all."""

import os
from pathlib import Path

import pytest

from shared.store import publish
from shared.store.publish import publishing


def test_a_file_takes_its_place_at_the_end_and_is_durable_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final, synced = tmp_path / "weights", list[Path]()
    final.write_text("old")
    monkeypatch.setattr(publish, "sync", synced.append)
    with publishing(final) as partial:
        partial.write_text("new")
        assert final.read_text() == "old" and synced == []
    assert final.read_text() == "new" and os.listdir(tmp_path) == ["weights"]
    assert synced == [partial, tmp_path]


def test_after_an_error_the_file_is_as_it_was(tmp_path: Path) -> None:
    final = tmp_path / "weights"
    final.write_text("old")
    with pytest.raises(OSError, match="full"), publishing(final) as partial:
        partial.write_text("half of it")
        raise OSError("full")
    assert final.read_text() == "old" and os.listdir(tmp_path) == ["weights"]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    final = tmp_path / "weights"
    (tmp_path / f".weights.{publish._host()}-4194399-00000000.partial").write_text("half of it")
    with publishing(final) as partial:
        partial.write_text("new")
    assert os.listdir(tmp_path) == ["weights"]


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with publishing(tmp_path / "weights") as partial:
            os.close(os.open(partial, os.O_CREAT | os.O_WRONLY, 0o600))  # as safetensors does
    finally:
        os.umask(before)
    assert (tmp_path / "weights").stat().st_mode & 0o777 == 0o640
