import dataclasses
from pathlib import Path

import pytest

from shared.config import apply_overrides, config_from_dict, config_to_dict
from shared.errors import DataError
from stage2_train.config import BlendConfig, L2lConfig, TrainConfig
from stage2_train.recipes import RECIPES, embedded, paper, paper_baseline
from tests.stage2_train.miniature import mini_config, plain_config


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_json(name: str) -> None:
    config = RECIPES[name]()
    assert config_from_dict(TrainConfig, config_to_dict(config), "test") == config
    assert RECIPES[name].__doc__


def test_embedded_recipes_see_the_same_samples() -> None:
    reference = embedded()
    for name, recipe in RECIPES.items():
        if "paper" not in name:
            config = recipe()
            for field in (
                "data",
                "fraction",
                "split_seed",
                "seed",
                "steps",
                "batch_labelled",
                "optim",
                "strong",
                "text",
            ):
                assert getattr(config, field) == getattr(reference, field), (name, field)


def test_paper_numbers() -> None:
    config = paper()
    assert (config.optim.lr, config.optim.weight_decay, config.optim.power) == (5e-5, 1e-2, 0.9)
    assert (config.loss.unlabelled.ce_weight, config.loss.unlabelled.dice_weight) == (0.7, 0.3)
    assert config.loss.class_weights == (0.5, 1.5) and config.size_hw == (480, 480) and config.seed == 22
    assert (config.l2l.tau_fg, config.l2l.tau_bg, config.l2l.band_px) == (0.70, 0.20, -1)
    assert config.text.candidates == 9 and config.ema.decay == 0.0
    assert paper_baseline().steps == config.steps and paper_baseline().segmentor.sesm is None


def test_the_grace_of_the_alarm_grows_with_the_run() -> None:
    """Of 100,750 steps the first hundred say nothing yet: a threshold of 0.95 may still be passed by no pixel."""
    assert paper().grace_steps == paper().steps // 50 == 2015
    assert (
        embedded().grace_steps == apply_overrides(embedded(), ["alarm.grace_steps=none"]).grace_steps == 100
    )
    assert apply_overrides(paper(), ["alarm.grace_steps=0"]).grace_steps == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method=magic", "not one of supervised"),
        ("fraction=0", "not in"),
        ("steps=0", "at least 1"),
        ("accumulation=3", "not a multiple of accumulation 3"),
        ("batch_unlabelled=0", "needs batch_unlabelled"),
        ("precision=fp8", "fp8"),
        ("l2l.tau_bg=0.8", "must be below"),
        ("l2l.field_probability=1.5", "not in"),
        ("ema.teacher=true", "needs ema.decay"),
        ("fixmatch.threshold=0.2", "not in"),
        ("alarm.min_foreground=0.9", "min_foreground"),
        ("runtime.log_every=0", "below 1"),
        ("optim.lr=0", "above 0"),
        ("text.similarity=2", "not in"),
        ("strong.operations=20", "not in 0.."),
        ("weak.flip_probability=-1", "not in"),
        ("l2l.nosuch=1", "no field"),
        ("method=semires", "method semires needs a teacher"),
        ("method=ccvc", "needs segmentor.second_branch"),
        ("loss.class_weights=0,1.5", r"loss.class_weights is \(0.0, 1.5\)"),
        ("loss.burn_in_share=1", "burn_in_share is 1.0"),
        ("loss.burn_in_share=-0.1", "burn_in_share is -0.1"),
        ("resmatch.min_weight=2", "min_weight 2.0"),
        ("resmatch.quality_power=-1", "must not be negative"),
        ("semires.match=sam", "expected one of iom, cpi"),
        ("semires.iou=0", "not in"),
        ("semires.max_candidates=0", "at least 1"),
        ("omni_res.weak_label=scribble", "expected one of box, point"),
        ("omni_res.background=0.8", "background <= foreground"),
        ("omni_res.min_fill=2", "not in"),
        ("tscs_qdw.join_iou=2", "join_iou 2.0"),
        ("augseg.threshold=0.1", "not in"),
        ("augseg.min_area=0.9", "min_area <= max_area"),
        ("ccvc.conflict_weight=-1", "must not be negative"),
        ("catm.lowest=0.9", "lowest <= start"),
        ("catm.momentum=1", "not in"),
        ("rple.ddpg.actor_lr=-1", "ddpg.actor_lr is -1"),
        ("batch_unlabelled=20000", "rple.ddpg.capacity is 10000: a step adds batch_unlabelled 20000"),
        (
            "optim.muon.weight_decay=-1",
            r"optim.muon.weight_decay=-1': unusable Muon settings.*weight_decay=-1.0",
        ),
        ("optim.muon.adam_betas=0.9,1", "unusable Muon settings"),
        ("optim.muon.adam_eps=0", "unusable Muon settings"),
        ("optim.muon.update_rms=-0.2", "unusable Muon settings"),
    ],
)
def test_rejections_name_the_field(override: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        apply_overrides(embedded(), [override])


def test_a_field_needs_a_network_that_takes_one(tmp_path: Path) -> None:
    config = mini_config(tmp_path)
    with pytest.raises(DataError, match="use_sesm"):
        dataclasses.replace(config, segmentor=dataclasses.replace(config.segmentor, sesm=None))


@pytest.mark.parametrize(
    ("parts", "prior", "field"),
    [
        ({"use_spm": True, "use_sesm": True}, True, True),
        ({"use_spm": True, "use_sesm": False}, True, False),
        ({"use_spm": False, "use_sesm": False}, False, False),
        ({"use_spm": False, "use_sesm": True}, True, True),
    ],
)
def test_what_a_method_reads(tmp_path: Path, parts: dict, prior: bool, field: bool) -> None:
    config = mini_config(tmp_path, l2l=L2lConfig(**parts))
    assert (config.uses_prior, config.uses_field, config.uses_unlabelled) == (prior, field, True)


def test_supervised_reads_neither_prior_nor_unlabelled(tmp_path: Path) -> None:
    config = plain_config(tmp_path, "supervised")
    assert not (config.uses_prior or config.uses_field or config.uses_unlabelled)
    assert plain_config(tmp_path, "mllm_blend").uses_prior


def test_a_batch_that_is_not_read_is_not_shared_out(tmp_path: Path) -> None:
    config = plain_config(tmp_path, "supervised", batch_unlabelled=3, accumulation=2)
    config.require_shares(2)
    with pytest.raises(
        DataError, match="batch_labelled 4 cannot be shared out over 3 .* start 2 in all .*PROCS=2"
    ):
        config.require_shares(3)
    with pytest.raises(DataError, match="batch_unlabelled 3 is not a multiple of accumulation 2"):
        plain_config(tmp_path, "fixmatch", batch_unlabelled=3, accumulation=2)


def test_augseg_pairs_samples(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="batch_labelled 2 and batch_unlabelled 4 must be equal"):
        plain_config(tmp_path, "augseg", batch_labelled=2)


def test_blend_rejects_an_unknown_target() -> None:
    with pytest.raises(DataError, match="hard"):
        BlendConfig(target="hard")  # type: ignore[arg-type]
