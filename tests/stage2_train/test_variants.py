"""The recipes of comparison systems and ablations differ from their base where they say, and nowhere else."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from shared.config import config_to_dict
from shared.runlog import read_records
from stage2_train.config import RuntimeConfig
from stage2_train.recipes import RECIPES
from stage2_train.train import new_network, train
from stage2_train.variants import ABLATIONS, BEYOND, COMPARISONS
from tests.stage2_train.miniature import mini_config, plain_config


def flat(values: dict[str, Any], where: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{where}{name}.") if isinstance(value, dict) else {f"{where}{name}": value}
    return found


def changed(name: str, base: str) -> dict[str, Any]:
    """Fields of a recipe that differ from the base's, with their values."""
    one, two = (flat(config_to_dict(RECIPES[recipe]())) for recipe in (base, name))
    return {key: two.get(key) for key in {**one, **two} if one.get(key) != two.get(key)}


NO_MODULE = dict.fromkeys(f"segmentor.sesm.{name}" for name in ("operators", "alpha_init", "beta_init"))


@pytest.mark.parametrize("size", ["embedded", "paper"])
@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("resmatch", {"method": "resmatch"}),
        ("semires", {"ema.decay": 0.9996, "ema.teacher": True, "loss.unlabelled.class_weights": [0.9, 1.1]}),
        ("semires-cpi", {"semires.match": "cpi", "method": "semires"}),
        (
            "omni-res-box",
            {"method": "omni_res", "ema.decay": 0.9996, "ema.teacher": True, "alarm.min_coverage": 0.002},
        ),
        ("omni-res-point", {"omni_res.weak_label": "point", "alarm.min_coverage": 0.002}),
        ("tscs-qdw", {"method": "tscs_qdw", "ema.teacher": True}),
        (
            "augseg",
            {
                "method": "augseg",
                "ema.decay": 0.999,
                "ema.teacher": True,
                "loss.unlabelled.mean_over": "all",
            },
        ),
        ("ccvc", {"method": "ccvc", "segmentor.second_branch": True}),
        ("catm", {"method": "catm"}),
        ("mllm-blend", {"method": "mllm_blend"}),
        ("mllm-blend-80", {"method": "mllm_blend", "blend.prior_share": 0.8}),
        ("distillation", {"method": "distillation"}),
        ("selective-distillation", {"method": "distillation", "distillation.select_from": 0.5}),
        ("agreement-filter", {"method": "mllm_blend", "blend.target": "agree"}),
    ],
)
def test_comparisons(size: str, method: str, fields: dict[str, Any]) -> None:
    """Against FixMatch, which is the base with no part of L2L."""
    found = changed(f"{method}-{size}", f"fixmatch-{size}")
    assert fields.items() <= found.items()
    burns_in = method.startswith(("semires", "omni", "tscs"))
    share = 0.25 if method.startswith("omni") and size == "paper" else 0.1
    burn_in = {"loss.burn_in_share": share} if burns_in else {}
    average = {f"ema.{name}" for name in ("decay", "warmup", "teacher")}
    allowed = {"method", "loss.unlabelled.class_weights"} | average | fields.keys()
    assert found.keys() <= allowed | burn_in.keys() and burn_in.items() <= found.items()


CONSTANT = ("semires", "semires-cpi", "omni-res-box", "omni-res-point", "tscs-qdw")
"""Systems whose teacher's decay is the same at every step."""


@pytest.mark.parametrize(
    ("method", "paper_warms_up"), [*((name, False) for name in CONSTANT), ("augseg", True)]
)
def test_a_teacher_is_warmed_up_where_the_run_is_short_or_its_paper_says_so(
    method: str, paper_warms_up: bool
) -> None:
    found = [RECIPES[f"{method}-{size}"]().ema.warmup for size in ("embedded", "paper")]
    assert found == [True, paper_warms_up]


@pytest.mark.parametrize("size", ["embedded", "paper"])
@pytest.mark.parametrize(
    ("part", "fields"),
    [
        ("spm-sesm", {"l2l.use_rple": False}),
        ("spm-rple", {"l2l.use_sesm": False, **NO_MODULE}),
        ("sesm-rple", {"l2l.use_spm": False}),
        ("spm", {"l2l.use_sesm": False, "l2l.use_rple": False, **NO_MODULE}),
        ("pppp", {"segmentor.sesm.operators": "PPPP"}),
        ("aaaa", {"segmentor.sesm.operators": "AAAA"}),
        ("aapp", {"segmentor.sesm.operators": "AAPP"}),
        ("ppaa", {}),
        ("tau-50", {"l2l.use_rple": False, "l2l.tau_fg": 0.5}),
        ("tau-70", {"l2l.use_rple": False}),
        ("tau-90", {"l2l.use_rple": False, "l2l.tau_fg": 0.9}),
        ("no-margin", {"rple.reward.margin": 0.0}),
        ("no-consistency", {"rple.reward.consistency": 0.0}),
        ("no-coverage", {"rple.reward.coverage": 0.0}),
    ],
)
def test_ablations(size: str, part: str, fields: dict[str, Any]) -> None:
    assert changed(f"{size}-{part}", size) == fields


@pytest.mark.parametrize("size", ["embedded", "paper"])
def test_fusions_beyond_the_paper(size: str) -> None:
    """Against the fused prior alone; `bold` is `confident` without what the frozen model says of its own answer."""
    fused = {
        "l2l.tau_bg": 0.3,
        "spm.eps": 0.02,
        "spm.prior_sharpness": 3.0,
        "spm.confidence_centre": 0.25,
    }
    assert changed(f"{size}-bold", f"{size}-spm") == fused
    assert changed(f"{size}-confident", f"{size}-bold") == {"spm.confidence_gain": 0.5}
    assert changed(f"{size}-equal", f"{size}-spm") == {"spm.equalise": True}


@pytest.mark.parametrize("name", [*ABLATIONS, "semires-cpi", "omni-res-point", "agreement-filter"])
def test_every_ablation_and_every_second_form_of_a_method_trains(
    mini_root: Path, tmp_path: Path, name: str
) -> None:
    """What they change acts in a real run; the methods themselves are trained in `test_train`."""
    runtime = RuntimeConfig(log_every=1, checkpoint_every=0, tensorboard=False)
    base = mini_config(mini_root, steps=2, runtime=runtime)
    if name in COMPARISONS:
        base = plain_config(mini_root, "fixmatch", steps=2, runtime=runtime)
    config = {**ABLATIONS, **COMPARISONS}[name](base)
    train(config, tmp_path / "run", quiet=True)
    records = read_records(tmp_path / "run" / "metrics.jsonl")
    assert [record["step"] for record in records] == [1, 2]
    assert all(math.isfinite(record["loss"]) and record["coverage"] >= 0 for record in records)
    own = config.l2l
    assert ("tau_fg" in records[0]) is own.use_rple and (records[0].get("lam", 0.0) > 0) is own.use_spm
    has_field = (tmp_path / "run" / "model" / "model.safetensors").read_bytes().count(b"sesm.") > 0
    assert has_field is own.use_sesm


def test_every_variant_is_a_recipe_at_both_sizes() -> None:
    for size in ("embedded", "paper"):
        compared, changes = {f"{name}-{size}" for name in COMPARISONS}, {*ABLATIONS, *BEYOND}
        assert compared | {f"{size}-{name}" for name in changes} <= {*RECIPES}


def test_seven_blends() -> None:
    shares = [
        RECIPES[name]().blend.prior_share
        for name in RECIPES
        if name.startswith("mllm-blend-") and "0-emb" in name
    ]
    assert shares == [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]


def test_of_one_seed_every_embedded_network_starts_from_the_same_weights() -> None:
    """Differences with seeds paired say nothing if the methods start from different decoders."""
    networks = {
        config.segmentor: name
        for name, config in ((name, recipe()) for name, recipe in RECIPES.items() if "embedded" in name)
    }
    assert (
        len(networks) > 3
    )  # without the structural module, with it, with other operators, with a second branch
    config = RECIPES["supervised-embedded"]()
    reference = new_network(config).state_dict()
    shared = ("vision.", "text.", "fusion.", "decoder.")
    for segmentor, name in networks.items():
        state = new_network(dataclasses.replace(config, segmentor=segmentor)).state_dict()
        for tensor, value in state.items():
            if tensor.startswith(shared):
                assert torch.equal(value, reference[tensor]), f"{name}: {tensor}"
