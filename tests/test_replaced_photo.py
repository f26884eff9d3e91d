"""A photo that is replaced under its name and size, from stage 1 to stage 2 and back."""

import dataclasses
from pathlib import Path

import pytest

from shared.config import DataConfig
from shared.errors import DataError
from stage1_priors.config import CanaryConfig, MllmConfig, PriorsConfig
from stage1_priors.run import run_priors
from stage2_train.inputs import open_inputs
from tests.stage1_priors.fake_engine import FakeEngine, write_model_folder
from tests.stage2_train.miniature import mini_config, write_data, write_tokenizer


def test_a_training_waits_for_the_priors_of_a_new_photo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = write_data(tmp_path / "data", 4)
    write_tokenizer(tmp_path / "tokenizer")
    priors = PriorsConfig(
        data=DataConfig(root=str(tmp_path / "data"), dataset="refshapes"),
        model=MllmConfig(path=str(write_model_folder(tmp_path / "model")), dtype="float32"),
        splits=("train",),
        canary=CanaryConfig(mode="skip"),
        cache_root=str(tmp_path / "stores"),
    )
    run_priors(priors, engine_factory=FakeEngine().factory, quiet=True)
    config = mini_config(tmp_path)
    photo = dataset.image_path(dataset.samples("train")[0])
    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", _refusing(photo.parent))
        open_inputs(config)

    photo.write_bytes(photo.read_bytes() + b"\0")
    with pytest.raises(DataError, match=f"made for other bytes of image {photo.name} than"):
        open_inputs(config)
    again = run_priors(priors, engine_factory=FakeEngine().factory, quiet=True)
    for named in ("", str(again)):  # of two stores the one made for the photos as they are now
        inputs = open_inputs(dataclasses.replace(config, store=named))
        assert inputs.store is not None and inputs.store["path"] == str(again)


def _refusing(folder: Path):
    """`Path.read_bytes` of anything but the files of a folder."""
    original = Path.read_bytes

    def read(path: Path) -> bytes:
        assert path.parent != folder, f"{path} is read though stage 1 knows it"
        return original(path)

    return read
