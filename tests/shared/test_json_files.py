"""JSON objects in files."""

from pathlib import Path

import pytest

from shared.errors import DataError
from shared.json_files import object_of_line, read_json, write_json


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(TypeError):
        write_json(path, {(1, 2): "key that JSON has not"})
    assert path.read_text() == '{\n "x": 1\n}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), ("{", "cannot be read"), ("[]", "holds a list, not a JSON object")],
)
def test_what_is_no_object_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        read_json(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (b'{"a": 1}\n', {"a": 1}),
        (b'{"a": 1}', {}),
        (b'{"a": \n', {}),
        (b"[1]\n", {}),
        (b"\xff\n", {}),
        (b"", {}),
    ],
)
def test_a_line_that_a_kill_tore_holds_nothing(line: bytes, value: dict) -> None:
    assert object_of_line(line) == value
