"""What is called idle is idle: a run with all such fields changed ends with the same weights."""

from pathlib import Path

import pytest

from shared.config import apply_overrides, idle_overrides
from stage2_train.checkpoint import list_checkpoints, load_weights
from stage2_train.config import L2lConfig, TrainConfig
from stage2_train.idle_fields import idle_fields, untrained_parts
from stage2_train.recipes import RECIPES
from stage2_train.train import train
from tests.stage2_train.miniature import mini_config, plain_config, segmentor_config
from tests.stage2_train.test_train import assert_same_end, equal

CHANGES = {
    "fixmatch": ["fixmatch.threshold=0.9"],
    "resmatch": ["resmatch.threshold=0.9", "resmatch.min_weight=0.5"],
    "semires": ["semires.iou=0.9", "semires.weight_offset=2"],
    "semires.iou": ["semires.iou=0.1"],
    "semires.overlap": ["semires.overlap=0.1"],
    "omni_res": ["omni_res.foreground=0.9", "omni_res.weak_label=point"],
    "tscs_qdw": ["tscs_qdw.join_iou=0.1"],
    "augseg": ["augseg.threshold=0.9"],
    "ccvc": ["ccvc.discrepancy=3"],
    "catm": ["catm.start=0.9"],
    "blend": ["blend.prior_share=0.1", "blend.threshold=0.9", "blend.target=soft"],
    "blend.prior_share": ["blend.prior_share=0.1"],
    "blend.threshold": ["blend.threshold=0.9"],
    "blend.agreement": ["blend.agreement=0.1"],
    "distillation": ["distillation.threshold=0.9", "distillation.select_from=0.1"],
    "distillation.select_iou": ["distillation.select_iou=0.9"],
    "l2l": ["l2l.field_probability=0.1", "l2l.tau_fg=0.9"],
    "l2l.tau_fg": ["l2l.tau_fg=0.9"],
    "l2l.tau_bg": ["l2l.tau_bg=0.1"],
    "l2l.field_probability": ["l2l.field_probability=0.1"],
    "spm": ["spm.base=0.9", "spm.confidence_gain=0.5"],
    "spm.confidence_centre": ["spm.confidence_centre=0.9"],
    "rple": ["rple.policy.start_fg=0.8", "rple.ddpg.noise_std=0.3", "rple.reward.balanced=true"],
    "misplaced_priors": ["misplaced_priors=0.5"],
    "batch_unlabelled": ["batch_unlabelled=8"],
    "strong": ["strong.operations=4"],
    "text": ["text.candidates=5", "text.similarity=0.9"],
    "weak_eval": ["weak_eval=false"],
    "runtime.log_with_hidden_masks": ["runtime.log_with_hidden_masks=false"],
    "text.table": ["text.table=photo"],
    "text.replace_rate": ["text.replace_rate=0.9"],
    "text.insert_rate": ["text.insert_rate=0.9"],
    "text.swap_rate": ["text.swap_rate=0.9"],
    "text.delete_rate": ["text.delete_rate=0.9"],
    "text.similarity": ["text.similarity=-1"],
    "text.protect": ["text.protect=false"],
    "loss.lambda_unlabelled": ["loss.lambda_unlabelled=9"],
    "loss.unlabelled": ["loss.unlabelled.dice_weight=9"],
    "loss.unlabelled.mean_over": ["loss.unlabelled.mean_over=all"],
    "loss.burn_in_share": ["loss.burn_in_share=0.5"],
    "loss.rampup_steps": ["loss.rampup_steps=3"],
    "alarm.grace_steps": ["alarm.grace_steps=0"],
    "alarm.min_coverage": ["alarm.min_coverage=0.9"],
    "alarm.min_foreground": ["alarm.min_foreground=0.5"],
    "alarm.max_foreground": ["alarm.max_foreground=0.51"],
    "optim.lr": ["optim.lr=1"],
    "optim.weight_decay": ["optim.weight_decay=0.5"],
    "optim.decay_vectors": ["optim.decay_vectors=false"],
    "optim.muon": ["optim.muon.lr=1"],
    "optim.pretrained_lr_scale": ["optim.pretrained_lr_scale=0.5"],
    "optim.pretrained_prefixes": ["optim.pretrained_prefixes=decoder."],
    "ema.warmup": ["ema.warmup=false"],
    "ema.teacher": ["ema.teacher=true"],
    "ema.export": ["ema.export=false"],
    "val_split": ["val_split=testA"],
    "val_limit": ["val_limit=3"],
    "fraction": ["fraction=0.5"],
    "split_seed": ["split_seed=7"],
}
"""What is changed of every field or section that may be idle."""


def l2l(root: Path, **parts: bool) -> TrainConfig:
    segmentor = segmentor_config(root / "tokenizer", sesm=parts.get("use_sesm", True))
    return mini_config(root, segmentor=segmentor, l2l=L2lConfig(band_px=0, **parts))


def untaught(root: Path, **parts: bool) -> TrainConfig:
    """Pseudo-labels weigh nothing."""
    return apply_overrides(
        l2l(root, **parts), ["loss.lambda_unlabelled=0", "alarm.patience=1", "ema.decay=0.5"]
    )


CONFIGS = {
    "l2l": l2l,
    "l2l-untaught": untaught,
    "l2l-untaught-no-field": lambda root: untaught(root, use_sesm=False),
    "l2l-no-text": lambda root: apply_overrides(l2l(root), ["text.candidates=0"]),
    "l2l-teacher": lambda root: apply_overrides(l2l(root), ["ema.decay=0.5", "ema.teacher=true"]),
    "l2l-static": lambda root: l2l(root, use_rple=False),
    "l2l-policy": lambda root: l2l(root, use_spm=False, use_sesm=False),
    "supervised": lambda root: plain_config(root, "supervised"),
    "supervised-average": lambda root: apply_overrides(
        plain_config(root, "supervised"), ["ema.decay=0.5", "alarm.patience=1"]
    ),
    "supervised-all": lambda root: apply_overrides(plain_config(root, "supervised"), ["fraction=1"]),
    "fixmatch": lambda root: plain_config(root, "fixmatch"),
    "semires": lambda root: plain_config(root, "semires"),
    "ccvc": lambda root: plain_config(root, "ccvc"),
    "semires-cpi": lambda root: apply_overrides(plain_config(root, "semires"), ["semires.match=cpi"]),
    "blend": lambda root: plain_config(root, "mllm_blend"),
    "blend-soft": lambda root: apply_overrides(plain_config(root, "mllm_blend"), ["blend.target=soft"]),
    "blend-agree": lambda root: apply_overrides(plain_config(root, "mllm_blend"), ["blend.target=agree"]),
    "distillation": lambda root: plain_config(root, "distillation"),
    "muon": lambda root: apply_overrides(plain_config(root, "fixmatch"), ["optim.name=muon"]),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_idle_fields_change_nothing(mini_root: Path, tmp_path: Path, name: str) -> None:
    config = apply_overrides(CONFIGS[name](mini_root), ["steps=3"])
    idle = [field for field, _ in idle_fields(config)]
    missing = [field for field in idle if field not in CHANGES]
    assert not missing, f"say in CHANGES how to change {', '.join(missing)}"
    changes = [change for field in idle for change in CHANGES[field]]
    changed = apply_overrides(config, changes)
    assert changed != config
    said = idle_overrides(idle_fields(config), changes)
    assert [line.partition(" has no effect: ")[0] for line in said] == changes
    for folder, run in (("plain", config), ("changed", changed)):
        train(run, tmp_path / folder, quiet=True)
    if config.loss.lambda_unlabelled:
        assert_same_end(tmp_path / "plain", tmp_path / "changed")
    else:  # a policy that never acts is saved as it began
        one, two = (load_weights(_checkpoint(tmp_path / name), "model") for name in ("plain", "changed"))
        assert equal(one, two)


def _checkpoint(run: Path) -> Path:
    return list_checkpoints(run / "checkpoints")[-1]


def test_what_these_fields_change_elsewhere_is_not_called_idle(mini_root: Path) -> None:
    """Each of them acts in the same run but for the one setting that makes it idle."""
    for name, field in (
        ("l2l", "weak_eval"),
        ("l2l", "text.similarity"),
        ("blend", "loss.unlabelled"),
        ("l2l-untaught", "spm"),
        ("l2l-untaught", "weak_eval"),
    ):
        assert field not in dict(idle_fields(CONFIGS[name](mini_root)))
    for name, field in (
        ("l2l-teacher", "weak_eval"),
        ("l2l-no-text", "text.similarity"),
        ("blend-soft", "loss.unlabelled"),
        ("supervised-average", "ema.teacher"),
        ("l2l", "alarm.min_coverage"),
        ("l2l-untaught-no-field", "spm"),
        ("l2l-untaught-no-field", "rple"),
        ("supervised", "loss.burn_in_share"),
        ("supervised-all", "split_seed"),
        ("ccvc", "loss.unlabelled.mean_over"),
    ):
        assert field in dict(idle_fields(CONFIGS[name](mini_root))), (name, field)


def test_a_module_that_nothing_trains_is_told_of(mini_root: Path) -> None:
    """Switched off, the structural enhancement is still in the network, as it was drawn."""
    for change in ("l2l.use_sesm=false", "method=fixmatch", "l2l.field_probability=0"):
        config = apply_overrides(mini_config(mini_root), [change])
        (line,) = untrained_parts(config)
        assert "no sample trains it" in line and "embedded-spm-rple" in line
    assert untrained_parts(RECIPES["embedded-spm-rple"]()) == untrained_parts(mini_config(mini_root)) == []


def test_what_acts_is_not_called_idle(mini_root: Path) -> None:
    acting = {
        "l2l": [
            "spm.base=0.1",
            "rple.ddpg.noise_std=0.3",
            "l2l.use_sesm=true",
            "misplaced_priors=0.3",
            "seed=3",
            "text.similarity=0.9",
            "weak_eval=false",
        ],
        "l2l-static": ["l2l.tau_fg=0.9", "spm.eps=0.1"],
        "supervised": ["batch_labelled=8", "optim.lr=1", "loss.class_weights=1,1", "fraction=0.5"],
        "fixmatch": ["fixmatch.threshold=0.9", "strong.operations=0", "loss.unlabelled.dice_weight=2"],
        "blend": ["blend.prior_share=0.1", "blend.threshold=0.9", "misplaced_priors=0.3"],
        "muon": ["optim.muon.lr=1", "optim.power=0"],
    }
    for name, changes in acting.items():
        assert idle_overrides(idle_fields(CONFIGS[name](mini_root)), changes) == []


def test_the_centre_of_trust_acts_with_its_gain(mini_root: Path) -> None:
    config = apply_overrides(CONFIGS["l2l"](mini_root), ["spm.confidence_gain=0.5"])
    assert idle_overrides(idle_fields(config), ["spm.confidence_centre=0.9"]) == []


def test_the_line_names_the_change_and_the_reason(mini_root: Path) -> None:
    config = plain_config(mini_root, "fixmatch")
    assert idle_overrides(
        idle_fields(config), ["misplaced_priors=0.3", "steps=4", "rple.ddpg.noise_std=0.1"]
    ) == [
        "misplaced_priors=0.3 has no effect: method fixmatch reads no prior",
        "rple.ddpg.noise_std=0.1 has no effect: method is fixmatch",
    ]
