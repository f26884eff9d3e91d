"""What changes a fingerprint, and what must not."""

import dataclasses
import os
import resource
import shutil
import time
from dataclasses import replace

import pytest
from PIL import Image

from shared.config import apply_overrides
from shared.errors import DataError
from stage1_priors import engine as engine_module
from stage1_priors.config import MllmConfig, PriorsConfig, ProposerConfig
from stage1_priors.families import QWEN2_5_VL
from stage1_priors.identity import (
    ImageHasher,
    differences,
    graph_fingerprint,
    identify_images,
    images_fingerprint,
    locate_model,
)
from stage1_priors.job import describe_plan, make_job
from stage1_priors.recipes import RECIPES
from stage1_priors.run import run_priors
from tests.stage1_priors.fake_engine import FakeEngine, write_model_folder

ROWS_CHANGE = [
    "splits=train,val",
    "splits=val,train,testA,testB",
    "model.dtype=bfloat16",
    "model.question=Where is the {expression}?",
    "model.system=Be brief.",
    "model.max_tokens=32",
    "model.max_model_len=512",
    "model.top_logprobs=0",
    "model.num_samples=4",
    "model.sample_temperature=0.5",
    "engine.kind=transformers",
    "proposer.kind=box",
    "proposer.grid=32",
    "proposer.smoothing=0.02",
    "proposer.multimask=true",
    "proposer.dtype=bfloat16",
    "clip_tolerance=0.1",
    "image_hash=size",
]
ROWS_STAY = [
    "engine.chunk_rows=7",
    "engine.ahead_rows=7",
    "engine.image_gb=0.01",
    "engine.block_size=64",
    "engine.batch_size=3",
    "engine.caching=false",
    "engine.eager=true",
    "engine.image_cache_gb=0.5",
    "engine.gpus=2",
    "engine.memory_gb=9",
    "engine.kv_cache_gb=9",
    "engine.memory_gb=9",
    "proposer.batch_images=3",
    "proposer.batch_boxes=3",
    "proposer.own_process=true",
    "proposer.threads=3",
    "canary.mode=warn",
    "error_ceiling=0.9",
    "answer_failure_ceiling=0.9",
]


@pytest.mark.parametrize("override", ROWS_CHANGE)
def test_a_setting_that_changes_rows_changes_the_store(config, override):
    assert make_job(apply_overrides(config, [override])).fingerprint != make_job(config).fingerprint


@pytest.mark.parametrize("override", ROWS_STAY)
def test_a_setting_of_speed_or_policy_does_not(config, override):
    assert make_job(apply_overrides(config, [override])).fingerprint == make_job(config).fingerprint


def test_what_is_compiled_depends_on_the_model_and_not_on_the_data(config):
    """Else every changed split, and every photo, would compile anew."""
    own = graph_fingerprint(make_job(config).identity)
    for stays in ("splits=val", "image_hash=size", "proposer.grid=32", "model.max_tokens=32"):
        assert graph_fingerprint(make_job(apply_overrides(config, [stays])).identity) == own
    for changes in ("model.dtype=bfloat16", "model.max_model_len=512", "engine.kind=transformers"):
        assert graph_fingerprint(make_job(apply_overrides(config, [changes])).identity) != own


def test_moving_the_model_or_the_data_changes_nothing(config, tmp_path, refshapes_root):
    moved = tmp_path / "elsewhere"
    os.symlink(refshapes_root, moved)
    other = write_model_folder(tmp_path / "another name")
    same = apply_overrides(config, [f"data.root={moved}", f"model.path={other}"])
    assert make_job(same).fingerprint == make_job(config).fingerprint


def test_other_weights_change_the_store(config, tmp_path):
    before = make_job(config)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"Weights")
    after = make_job(config)
    assert differences(before.identity, after.identity)[0].startswith("model.files:")


def test_another_engine_version_changes_the_store(config, monkeypatch):
    before = make_job(config)
    versions = engine_module.engine_versions("vllm") | {"vllm": "vllm 99"}
    monkeypatch.setattr("stage1_priors.identity.engine_versions", lambda kind: versions)
    after = make_job(config)
    assert len(differences(before.identity, after.identity)) == 1
    assert after.fingerprint != before.fingerprint


FAMILY_OF = "stage1_priors.job.family_of"


def family_with(**changes):
    """What stands for `family_of`: any folder's model is a Qwen2.5-VL that differs in this."""
    return lambda folder: replace(QWEN2_5_VL, **changes)


@pytest.mark.parametrize(
    ("named", "attribute", "value"),
    [
        (
            "asked.prompt",
            FAMILY_OF,
            family_with(question="Output the bounding box of {expression} in the image."),
        ),
        ("asked.prompt", FAMILY_OF, family_with(system="")),
        ("asked.sizes", FAMILY_OF, family_with(processed_size=lambda height, width, rules: (56, 224))),
        ("asked.sizes", FAMILY_OF, family_with(answer_frame_hw=lambda processed_hw: (1000, 1000))),
        ("asked.sizes", FAMILY_OF, family_with(num_image_tokens=lambda processed_hw, rules: 1)),
        ("asked.unit", FAMILY_OF, family_with(unit=0.5)),
        ("asked.resampling", "stage1_priors.identity.RESAMPLING", Image.Resampling.LANCZOS),
        ("engine.transformers", "stage1_priors.engine._version", lambda names: f"{names[0]} 99"),
        ("parser.version", "stage1_priors.identity.PARSER_VERSION", "99"),
        ("proposer.version", "stage1_priors.identity.PROPOSER_VERSION", "99"),
    ],
)
def test_another_prompt_package_or_rule_makes_another_store_and_is_named(
    config, monkeypatch, named, attribute, value
):
    run_priors(config, engine_factory=FakeEngine().factory, quiet=True)
    monkeypatch.setattr(attribute, value)
    plan = describe_plan(config)
    assert not plan["exists"] and plan["reused"] == {}
    assert any(line.startswith(f"{named}: ") for line in plan["changed"])


def test_the_familys_own_words_are_no_others(config):
    own = [f"model.question={QWEN2_5_VL.question}", f"model.system={QWEN2_5_VL.system}"]
    assert make_job(apply_overrides(config, own)).fingerprint == make_job(config).fingerprint


@pytest.mark.parametrize(
    "question",
    [
        "Where is it?",
        "{expression} or {expression}?",
        "Where is {it}?",
        "Is {{expression}} there?",
        "{} {expression}",
    ],
)
def test_a_question_that_does_not_hold_the_expression_once_is_refused(config, question):
    with pytest.raises(
        DataError, match=r"model\.question is '.*', expected {expression} in it once, and no other"
    ):
        apply_overrides(config, [f"model.question={question}"])


def test_a_byte_of_one_image_makes_another_store_and_is_named(config, tmp_path, refshapes_root):
    shutil.copytree(refshapes_root, tmp_path / "data")
    copy = apply_overrides(config, [f"data.root={tmp_path / 'data'}"])
    run_priors(copy, engine_factory=FakeEngine().factory, quiet=True)
    image = sorted((tmp_path / "data" / "images").glob("*.jpg"))[5]
    image.write_bytes(image.read_bytes() + b"\0")
    plan = describe_plan(copy)
    assert not plan["exists"] and [line.split(":")[0] for line in plan["changed"]] == ["data.images"]


def test_every_field_of_the_configuration_is_decided_upon():
    """A new field must be put in one of the two lists above, or is about places."""
    names = set()
    for field in dataclasses.fields(PriorsConfig):
        default = getattr(RECIPES["embedded"](), field.name)
        if dataclasses.is_dataclass(default):
            names |= {f"{field.name}.{inner.name}" for inner in dataclasses.fields(default)}
        else:
            names.add(field.name)
    tested = {override.partition("=")[0] for override in ROWS_CHANGE + ROWS_STAY}
    places = {"data.root", "data.dataset", "data.split_by", "model.path", "model.revision", "cache_root"}
    places |= {"proposer.path", "proposer.revision"}
    places |= {"proposer.candidates"}  # `test_candidates` decides on each of their fields
    alike = {"model.min_pixels", "model.max_pixels", "proposer.softness", "proposer.max_share"}
    policy = {name for name in names if name.startswith("canary.")} | {"ceiling_min_rows"}
    policy |= {"reuse", "engine.one_process", "engine.gpu_memory", "engine.quiet"}
    assert names == tested | places | alike | policy


def fingerprint_of_images(images, mode, memory):
    return images_fingerprint(identify_images(images, mode, memory))


def test_image_bytes_are_remembered_by_size_and_time(tmp_path):
    image, memory = tmp_path / "a.jpg", tmp_path / "hashes.json"
    image.write_bytes(b"one")
    first = fingerprint_of_images([("a.jpg", image)], "content", memory)
    assert fingerprint_of_images([("a.jpg", image)], "content", memory) == first
    stamp = image.stat().st_mtime_ns
    image.write_bytes(b"two")
    os.utime(image, ns=(stamp + 5_000, stamp + 5_000))
    assert fingerprint_of_images([("a.jpg", image)], "content", memory) != first
    memory.write_text("{damaged")
    image.write_bytes(b"one")
    assert fingerprint_of_images([("a.jpg", image)], "content", memory) == first


def test_an_image_that_was_changed_with_its_time_set_back_is_read_again(tmp_path):
    """As by `exiftool -P`, which turns a photo by one byte."""
    image, memory = tmp_path / "a.jpg", tmp_path / "hashes.json"
    image.write_bytes(b"one")
    first, stamp = fingerprint_of_images([("a.jpg", image)], "content", memory), image.stat().st_mtime_ns
    time.sleep(0.05)  # times of change are as fine as the kernel's clock ticks
    image.write_bytes(b"two")
    os.utime(image, ns=(stamp, stamp))
    assert fingerprint_of_images([("a.jpg", image)], "content", memory) != first


def test_remembered_hashes_save_the_reading(tmp_path, monkeypatch):
    image, memory = tmp_path / "a.jpg", tmp_path / "hashes.json"
    image.write_bytes(b"one")
    hasher = ImageHasher(memory)
    value = hasher.hash_of(image)
    hasher.save()
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda self: pytest.fail("read again"))
    assert ImageHasher(memory).hash_of(image) == value


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path):
    """Nothing is simulated: this process may not write files of more than 20 bytes for a moment."""
    image, memory = tmp_path / "a.jpg", tmp_path / "hashes" / "a.json"
    image.write_bytes(b"one")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
    try:
        with pytest.raises(DataError, match="a.json: cannot write the hashes of images: File too large"):
            fingerprint_of_images([("a.jpg", image)], "content", memory)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(memory.parent.iterdir()) == []
    fingerprint_of_images([("a.jpg", image)], "content", memory)
    assert list(memory.parent.iterdir()) == [memory]


def test_missing_and_renamed_images_count(tmp_path):
    image = tmp_path / "a.jpg"
    image.write_bytes(b"one")
    memory = tmp_path / "hashes.json"
    prints = {
        fingerprint_of_images([("a.jpg", image)], "content", memory),
        fingerprint_of_images([("b.jpg", image)], "content", memory),
        fingerprint_of_images([("a.jpg", None)], "content", memory),
        fingerprint_of_images([("a.jpg", image)], "size", memory),
    }
    assert len(prints) == 4


def test_a_repository_that_is_not_in_the_cache(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    said = r"model\.path: nobody/nothing \(revision main\) .*; `l2l fetch priors RECIPE` puts it"
    with pytest.raises(DataError, match=said):
        locate_model(MllmConfig(path="nobody/nothing"))
    with pytest.raises(DataError, match=r"proposer\.path: no folder 'not/a/model'"):
        locate_model(ProposerConfig(path="not/a/model"))


def test_a_repository_in_the_cache_is_named_by_its_commit(monkeypatch, tmp_path):
    commit = "ab12" * 10
    write_model_folder(tmp_path / "models--some--model" / "snapshots" / commit)
    (tmp_path / "models--some--model" / "refs").mkdir()
    (tmp_path / "models--some--model" / "refs" / "v1").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for revision in ("v1", commit):
        found = locate_model(MllmConfig(path="some/model", revision=revision))
        assert found.identity == {"repository": "some/model", "commit": commit}
        assert found.folder.name == commit


def test_differences_name_leaves():
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4}) == [
        "a.c: 2 -> 3",
        "d: None -> 4",
    ]
