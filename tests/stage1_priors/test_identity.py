"""What changes a fingerprint, and what must not."""

import dataclasses
import functools
import os
import shutil
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from shared.config import DataConfig, apply_overrides, idle_overrides
from shared.config_fields import config_fields
from shared.datasets import load_dataset
from shared.errors import DataError
from shared.image_hashes import identify_images
from shared.model_files import hash_model_files
from stage1_priors import engine as engine_module
from stage1_priors.config import CanaryConfig, MllmConfig, PriorsConfig, ProposerConfig
from stage1_priors.dry_run import describe_plan
from stage1_priors.families import QWEN2_5_VL
from stage1_priors.identity import (
    differences,
    graph_fingerprint,
    images_fingerprint,
    locate_model,
    locate_proposer,
)
from stage1_priors.job import make_job
from stage1_priors.proposers import PROPOSERS, BoxProposer, Prompts, ProposerKind
from stage1_priors.read_fields import PROPOSED, idle_fields
from stage1_priors.recipes import RECIPES, TINY_SAM_WEIGHTS
from stage1_priors.run import run_priors
from tests.stage1_priors.fake_engine import FakeEngine, write_model_folder

ROWS = {
    "splits": "train,val",
    "limit": "30",
    "image_hash": "size",
    "clip_tolerance": "0.1",
    "model.dtype": "bfloat16",
    "model.question": "Where is the {expression}?",
    "model.system": "Be brief.",
    "model.max_model_len": "512",
    "model.max_tokens": "32",
    "model.min_pixels": "6272",
    "model.max_pixels": "25088",
    "model.top_logprobs": "0",
    "model.num_samples": "4",
    "model.sample_temperature": "0.5",
    "engine.kind": "transformers",
    "proposer.grid": "32",
    "proposer.smoothing": "0.02",
    "proposer.softness": "0.03",
    "proposer.max_share": "0.1",
    "proposer.multimask": "true",
    "proposer.dtype": "bfloat16",
    "proposer.candidates.num": "5",
    "proposer.candidates.side": "32",
    "proposer.candidates.prompts": "boxes",
    "proposer.candidates.points_per_side": "4",
    "proposer.candidates.box_sides": "0.5",
    "proposer.candidates.min_iou": "0.5",
    "proposer.candidates.min_stability": "0.5",
    "proposer.candidates.stability_offset": "2",
    "proposer.candidates.same_iou": "0.5",
}
"""Another value of each field on which rows depend where a run reads it."""
ROWS_STAY = {
    "reuse": "false",
    "answer_failure_ceiling": "0.9",
    "error_ceiling": "0.9",
    "ceiling_min_rows": "7",
    "model.revision": "v1",
    "engine.chunk_rows": "7",
    "engine.ahead_rows": "7",
    "engine.image_gb": "0.01",
    "engine.batch_size": "3",
    "engine.caching": "false",
    "engine.image_cache_gb": "0.5",
    "engine.block_size": "64",
    "engine.eager": "true",
    "engine.one_process": "false",
    "engine.gpus": "2",
    "engine.kv_cache_gb": "9",
    "engine.gpu_memory": "0.5",
    "engine.memory_gb": "9",
    "engine.quiet": "false",
    "proposer.revision": "v1",
    "proposer.batch_images": "3",
    "proposer.batch_boxes": "3",
    "proposer.own_process": "true",
    "proposer.threads": "3",
    "canary.mode": "warn",
    "canary.scenes": "3",
    "canary.scale": "3",
    "canary.min_mean_iou": "0.9",
    "canary.seed": "3",
}
"""And of each field of speed, place or policy, on which they never depend."""
ELSEWHERE = {
    "data.root",
    "data.dataset",
    "data.split_by",
    "model.path",
    "cache_root",
    "proposer.kind",
    "proposer.path",
}
"""Folders, of which the content counts, and the kind, which is what the modes below are about."""
MODES = {
    "soft-box": [],
    "box": ["proposer.kind=box"],
    "sam2": ["proposer.kind=sam2"],
    "sam": ["proposer.kind=sam"],
    "points": ["proposer.kind=sam2", "proposer.candidates.num=4"],
    "boxes": ["proposer.kind=sam2", "proposer.candidates.num=4", "proposer.candidates.prompts=boxes"],
    "samples": ["model.num_samples=2"],
    "transformers": ["engine.kind=transformers"],
    "sizes": ["image_hash=size"],
    "canary": ["canary.mode=warn"],
}


@pytest.fixture(scope="module")
def mode_configs(refshapes_root, tmp_path_factory):
    """A config of each mode; what is behind the folders is not read."""
    root = tmp_path_factory.mktemp("modes")
    model = write_model_folder(root / "model", min_pixels=3136, max_pixels=50176)
    configs = {}
    for mode, changes in MODES.items():
        config = PriorsConfig(
            data=DataConfig(root=str(refshapes_root), dataset="refshapes"),
            model=MllmConfig(path=str(model), dtype="float32"),
            splits=("train", "val", "testA", "testB"),
            proposer=ProposerConfig(grid=16),
            canary=CanaryConfig(mode="skip"),
            cache_root=str(root / "cache"),
        )
        config = apply_overrides(config, changes)
        if config.proposer.is_sam:
            folder = write_model_folder(root / config.proposer.kind)
            (folder / "config.json").write_text(f'{{"model_type": "{config.proposer.kind}"}}')
            config = apply_overrides(config, [f"proposer.path={folder}"])
        configs[mode] = config
    return configs


@pytest.mark.parametrize("mode", MODES)
def test_a_store_is_named_by_what_its_run_reads(mode_configs, monkeypatch, mode):
    monkeypatch.setattr("stage1_priors.job.load_dataset", functools.cache(load_dataset))
    config = mode_configs[mode]
    own, idle, wrong = make_job(config).fingerprint, dict(idle_fields(config)), []
    for name, value in (ROWS | ROWS_STAY).items():
        change = f"{name}={value}"
        if (name, config.proposer.is_sam) == ("proposer.candidates.num", False) or (name, mode) == (
            "engine.gpus",
            "transformers",
        ):
            continue  # refused
        changed = apply_overrides(config, [change])
        if changed == config:
            continue  # the mode itself
        makes_another = make_job(changed).fingerprint != own
        is_idle = bool(idle_overrides(idle.items(), [change]))
        if makes_another != (name in ROWS and not is_idle):
            wrong.append(f"{change} {'makes' if makes_another else 'does not make'} another store")
    assert not wrong


def test_every_field_of_the_configuration_is_decided_upon():
    names = {field.path for field in config_fields(RECIPES["embedded"]())}
    decided = {*ROWS, *ROWS_STAY, *ELSEWHERE}
    assert not names - decided, (
        f"{', '.join(sorted(names - decided))}: a new field; put another value of it in ROWS or in ROWS_STAY, and if "
        "rows depend on it, its name among what its kind of proposer `reads` (PROPOSERS), or in read_fields.py"
    )
    assert not decided - names, "there is no such field any more"


def test_every_field_of_a_proposer_is_read_by_a_kind():
    declared = {name for kind in PROPOSERS.values() for name in (*kind.reads, *kind.speed)}
    own = {field.name for field in dataclasses.fields(ProposerConfig)} - {*PROPOSED}
    assert own == declared, (
        f"{', '.join(sorted(own ^ declared))}: name each field of ProposerConfig in `reads` of the kinds whose masks "
        "depend on it (PROPOSERS in proposers.py), or in `speed` where none does"
    )
    assert not any({*kind.reads} & {*kind.speed} for kind in PROPOSERS.values())
    assert {*PROPOSERS} <= {*MODES}, "name each kind of PROPOSERS in MODES"


@pytest.mark.parametrize("kind", ["soft-box", "box", "sam2"])
def test_a_proposer_reads_no_field_that_its_kind_does_not_declare(kind):
    own = PROPOSERS[kind]
    allowed = {*PROPOSED, *own.reads, *own.speed}
    fields = {field.name for field in dataclasses.fields(ProposerConfig)}
    built = ProposerConfig(kind=kind, grid=8, path=str(TINY_SAM_WEIGHTS), own_process=False)

    class Declared:
        def __getattr__(self, name):
            assert name in allowed or name not in fields, (
                f"proposer.{name} is read, and not declared in PROPOSERS"
            )
            return getattr(built, name)

    proposer = own.make(Declared(), TINY_SAM_WEIGHTS)
    proposer.load()
    image = Image.new("RGB", (64, 64), "grey")
    edges = tuple(np.eye(65)[edge] for edge in (16, 16, 48, 48))
    proposer.propose(
        Prompts(
            box_norm_B4=np.array([[0.25, 0.25, 0.75, 0.75]] * 2, np.float32),
            edges_B=(None, edges),
            names_B=("a.jpg", "a.jpg"),
            images_B=(image, image),
        )
    )
    proposer.close()


def test_a_field_of_a_new_kind_leaves_the_stores_of_others(config, monkeypatch):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Grown(ProposerConfig):
        kind: Literal["soft-box", "box", "blob"] = "soft-box"
        blobs: int = 3

    monkeypatch.setitem(PROPOSERS, "blob", ProposerKind(make=BoxProposer, reads=("blobs",)))
    own = make_job(config).fingerprint
    grown = replace(config, proposer=Grown(grid=16, own_process=False))
    blob = apply_overrides(grown, ["proposer.kind=blob"])
    for change, is_read in ((grown, False), (blob, True)):
        other = make_job(apply_overrides(change, ["proposer.blobs=4"])).fingerprint
        assert (other != make_job(change).fingerprint) == is_read
    assert make_job(grown).fingerprint == own
    assert idle_overrides(idle_fields(grown), ["proposer.blobs=4"]) == [
        "proposer.blobs=4 has no effect: proposer.kind is soft-box"
    ]


def test_the_models_own_limit_is_no_other(mode_configs):
    config = mode_configs["box"]
    own = apply_overrides(config, ["model.min_pixels=3136", "model.max_pixels=50176"])
    assert make_job(own).fingerprint == make_job(config).fingerprint


@pytest.mark.parametrize(
    "limits", [("min_pixels=3137", "min_pixels=3138"), ("max_pixels=50000", "max_pixels=49999")]
)
def test_limits_make_another_store_though_the_sizes_that_are_tried_stay(mode_configs, limits):
    one, other = (make_job(apply_overrides(mode_configs["box"], [f"model.{limit}"])) for limit in limits)
    assert one.identity["asked"]["sizes"] == other.identity["asked"]["sizes"]
    assert one.fingerprint != other.fingerprint


def test_the_order_of_splits_makes_another_store(config):
    assert (
        make_job(apply_overrides(config, ["splits=val,train,testA,testB"])).fingerprint
        != make_job(config).fingerprint
    )


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


def test_missing_and_renamed_images_count(tmp_path):
    image = tmp_path / "a.jpg"
    image.write_bytes(b"one")
    memory = tmp_path / "hashes.json"
    prints = {
        images_fingerprint(identify_images([(name, path)], mode, memory))
        for name, path, mode in (
            ("a.jpg", image, "content"), ("b.jpg", image, "content"), ("a.jpg", None, "content"),
            ("a.jpg", image, "size"),
        )
    }  # fmt: skip
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
    (found.folder / "config.json").write_text('{"model_type": "sam2"}')
    proposer = locate_proposer(ProposerConfig(kind="sam2", path="some/model", revision="v1"))
    files = hash_model_files(found.folder)
    assert proposer.identity == {"repository": "some/model", "commit": commit, "files": files}


def test_differences_name_leaves():
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4}) == [
        "a.c: 2 -> 3",
        "d: none -> 4",
    ]


def test_differences_are_told_in_words(config):
    own = make_job(config).identity
    lines = differences(own, make_job(apply_overrides(config, ["model.system=Be brief."])).identity)
    assert lines == [
        "asked.prompt: system: You are a helpful assistant. / user: <image>Output ... -> "
        "system: Be brief. / user: <image>Output ..."
    ]
    asked = "model.question=Please output the bounding box of {expression} in the image."
    (line,) = differences(own, make_job(apply_overrides(config, [asked])).identity)
    assert line.startswith("asked.prompt: ...") and "'" not in line and len(line) < 300
    (line,) = differences(
        {"a": {}}, {"a": {"model": {"repository": "some/model", "commit": "ab"}, "sides": [1, 2]}}
    )[:1]
    assert line == "a.model: none -> repository some/model, commit ab"
