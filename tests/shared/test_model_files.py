"""The hash of a model's files: what changes it, and what must not."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from shared.errors import DataError
from shared.model_files import hash_model_files, model_files


def write_model_folder(folder: Path) -> Path:
    """A folder with what a model's must have."""
    folder.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text(json.dumps({"name": name}))
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_model_folders(tmp_path):
    folder = write_model_folder(tmp_path / "model")
    first = hash_model_files(folder)
    (folder / "README.md").write_text("about")
    assert hash_model_files(folder) == first
    (folder / "tokenizer.json").write_text("{ }")
    assert hash_model_files(folder) != first
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match="not a model folder"):
        hash_model_files(folder)


READ = [
    "config.json",
    "generation_config.json",
    "model-00001-of-00002.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
]


@pytest.mark.parametrize("name", READ)
def test_what_a_loader_reads_counts(tmp_path, name):
    folder = write_model_folder(tmp_path / "model")
    prints = {hash_model_files(folder)}
    for content in ("one", "two"):
        (folder / name).write_text(content)
        prints.add(hash_model_files(folder))
    assert len(prints) == 3


@pytest.mark.parametrize(
    "name", ["training.json", "notes.txt", "eval_results.json", "README.md", "optimizer.bin", "a.jinja"]
)
def test_what_only_lies_beside_a_model_does_not(tmp_path, name):
    folder = write_model_folder(tmp_path / "model")
    first = hash_model_files(folder)
    (folder / name).write_text("{}")
    assert hash_model_files(folder) == first


def test_old_weights_count_where_there_are_no_others(tmp_path):
    folder = write_model_folder(tmp_path / "model")
    (folder / "pytorch_model.bin").write_bytes(b"old")
    assert "pytorch_model.bin" not in {path.name for path in model_files(folder)}
    (folder / "model.safetensors").unlink()
    (folder / "training_args.bin").write_bytes(b"none")
    assert [path.name for path in model_files(folder)] == [
        "config.json",
        "pytorch_model.bin",
        "tokenizer.json",
    ]


@pytest.mark.parametrize("weights", ["stage1_priors/tiny", "stage1_priors/tiny_sam", "stage2_train/tiny"])
def test_of_the_shipped_models_all_but_their_records_counts(weights):
    folder = Path(__file__).resolve().parents[2] / weights / "weights"
    beside = {path.name for path in folder.iterdir()} - {path.name for path in model_files(folder)}
    assert beside <= {"README.md", "training.json", "pretraining.json"}


def test_large_files_are_hashed_at_both_ends(tmp_path, monkeypatch):
    folder = write_model_folder(tmp_path / "model")
    monkeypatch.setattr("shared.model_files.WHOLE_FILE_BYTES", 2 * 2**20)
    weights = folder / "model.safetensors"
    prints = set()
    for edit in (0, -1, None):
        data = bytearray(3 * 2**20)
        if edit is not None:
            data[edit] = 1
        weights.write_bytes(data)
        prints.add(hash_model_files(folder))
    weights.write_bytes(bytes(3 * 2**20 + 1))
    assert len(prints | {hash_model_files(folder)}) == 4


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.model"])
def test_large_files_are_hashed_in_between_too(tmp_path, monkeypatch, name):
    """A model tuned in part differs in the middle of a file alone: in every number of some of its tensors."""
    folder = write_model_folder(tmp_path / "model")
    monkeypatch.setattr("shared.model_files.WHOLE_FILE_BYTES", 2 * 2**20)
    tensors = {f"layer.{index}": np.zeros((256, 1024), np.float32) for index in range(4)}
    if name == "model.safetensors":
        save_file(tensors, folder / name)
    else:
        (folder / name).write_bytes(b"".join(array.tobytes() for array in tensors.values()))
    prints = {hash_model_files(folder)}
    for layer in (1, 2):
        tuned = tensors | {f"layer.{layer}": tensors["layer.0"] + 1}
        if name == "model.safetensors":
            save_file(tuned, folder / name)
        else:
            (folder / name).write_bytes(b"".join(tuned[one].tobytes() for one in tensors))
        prints.add(hash_model_files(folder))
    assert len(prints) == 3


def test_the_hash_does_not_depend_on_the_place(tmp_path):
    folder = write_model_folder(tmp_path / "model")
    first = hash_model_files(folder)
    assert hash_model_files(folder.rename(tmp_path / "elsewhere")) == first
