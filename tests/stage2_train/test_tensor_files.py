"""Torn files: both readers, and the tower that adds the field that names the file."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from shared.errors import DataError
from stage2_train.backbones.pretrained import build_tower
from stage2_train.tensor_files import read_shapes, read_tensors


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    save_file({"a": torch.arange(6.0).reshape(2, 3)}, tmp_path / "a.safetensors")
    assert read_shapes(tmp_path / "a.safetensors") == {"a": (2, 3)}
    assert torch.equal(read_tensors(tmp_path / "a.safetensors")["a"], torch.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize("left", [0, 5, -1])
def test_a_torn_file_is_named_in_one_wording(tmp_path: Path, left: int) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"vision.weight": torch.zeros(1, 1)}, path)
    os.truncate(path, left % path.stat().st_size)
    for read in (read_shapes, read_tensors):
        with pytest.raises(DataError, match=r"a\.safetensors: not a safetensors file \("):
            read(path)
    with pytest.raises(DataError, match=r"^vision\.weights: .*a\.safetensors: not a safetensors file \("):
        build_tower(
            lambda own: nn.Linear(1, 1), None, str(path), field="vision.weights", prefix="vision.", same=()
        )
