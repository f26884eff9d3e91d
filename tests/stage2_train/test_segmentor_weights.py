import dataclasses
import os
import re
from pathlib import Path

import pytest
import torch

from shared.config import apply_overrides
from shared.errors import DataError
from stage2_train.recipes import embedded
from stage2_train.segmentor import build_segmentor, require_fitting_weights
from stage2_train.segmentor_weights import load_pretrained, save_segmentor
from tests.stage2_train.small_segmentor import small_config, small_model


def test_weights_round_trip_by_part(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    written, fresh = small_model(), small_model()
    with torch.no_grad():
        for parameter in written.parameters():
            parameter.add_(1.0)
    save_segmentor(written, path)
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    load_pretrained(fresh, path, ("vision", "text"))
    for name, value in fresh.state_dict().items():
        source = written.state_dict() if name.startswith(("vision.", "text.")) else before
        assert torch.equal(value, source[name]), name


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(DataError, match="no such weights file"):
        load_pretrained(small_model(), path)
    save_segmentor(small_model(), path)
    with pytest.raises(DataError, match=r"tensor sesm\.0\.\S+ is missing"):
        load_pretrained(small_model(sesm=True), path, ("sesm",))
    wide = build_segmentor(dataclasses.replace(small_config(), decoder_width=16))
    with pytest.raises(DataError, match=r"decoder\.\S+ has shape"):
        load_pretrained(wide, path, ("decoder",))
    os.truncate(path, path.stat().st_size - 4)
    with pytest.raises(DataError, match=r"model\.safetensors: not a safetensors file \(.*not fully covered"):
        load_pretrained(wide, path)


CONV = ("kind=convnextv2", "heads=", "window=0", "absolute_positions=false")


@pytest.mark.parametrize(
    ("changes", "message", "remedy"),
    [
        (
            [f"segmentor.vision.{change}" for change in CONV],
            r"tensor vision\.convnextv2\.\S+ is missing; to start without what does not fit \(vision\): --set (\S+)$",
            "segmentor.weight_parts=text,fusion",
        ),
        (
            ["segmentor.text.hidden=64"],
            r"text\.\S+ has shape .*\(text, fusion\): --set (\S+)$",
            "segmentor.weight_parts=vision",
        ),
        (
            ["segmentor.text.hidden=64", "segmentor.weight_parts=text"],
            r"has shape .*\(text\): --set (\S+)$",
            "segmentor.weights=none",
        ),
    ],
)
def test_shipped_weights_of_another_network_say_what_to_do(
    changes: list[str], message: str, remedy: str
) -> None:
    config = apply_overrides(embedded(), changes)
    for check in (build_segmentor, require_fitting_weights):
        with pytest.raises(DataError, match=message) as raised:
            check(config.segmentor)
        said = re.search(message, str(raised.value))
        assert said is not None and said[1] == remedy
    mended = apply_overrides(config, [remedy]).segmentor
    require_fitting_weights(mended)
    build_segmentor(mended)


def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"torn")
    with pytest.raises(DataError, match="model.safetensors: not a safetensors file"):
        load_pretrained(small_model(), path)
