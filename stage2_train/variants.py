"""Changes to a base recipe: the systems L2L is compared with, the paper's ablations of L2L, and fusions beyond it.

`recipes` applies each of them at the embedded and at the paper's size. Data, split, views, schedule and samples seen
stay those of the base, so that two recipes differ in the method alone.
"""

import dataclasses
from collections.abc import Callable
from itertools import combinations
from typing import Any

from stage2_train.config import TrainConfig
from stage2_train.ema import EmaConfig
from stage2_train.segmentor_config import SesmConfig

Change = Callable[[TrainConfig], TrainConfig]
"""A recipe as a change of another; its docstring says what it stands for."""

TEACHER_DECAY = 0.9996
"""Decay of the averaged teacher of SemiRES, Omni-RES and (ours) 3DResT."""

BURN_IN_SHARE = 0.1
"""Share of the steps that SemiRES, Omni-RES and 3DResT train on labelled samples alone (ours)."""

OMNI_BURN_IN_SHARE = 0.25
"""That of Omni-RES at the paper's size: 15 of 60 epochs in its released configs."""


# ---- comparison systems: the base is L2L's recipe without the structural enhancement ---------------------------------


def fixmatch(base: TrainConfig) -> TrainConfig:
    """FixMatch with the views of L2L, no prior ("Baseline w/o MLLM")."""
    return dataclasses.replace(base, method="fixmatch")


def resmatch(base: TrainConfig) -> TrainConfig:
    """RESMatch: FixMatch weighted by pseudo-label quality and strong-weak agreement."""
    return dataclasses.replace(base, method="resmatch")


def semires(base: TrainConfig) -> TrainConfig:
    """SemiRES with IoU-based optimal matching, an averaged teacher and burn-in.

    The teacher's decay is 0.9996 from the burn-in on, as published. Embedded it is warmed up (`ema.warmup`): the 360
    steps after the burn-in could not fill such an average.

    Its class weights 0.9 / 1.1 act on pseudo-labels alone (OURS): all systems share the loss on labelled samples.

    Give it a store with candidates (`priors run ... --set proposer.candidates.num=16`); without them the proposals of
    all training rows of an image stand in.
    """
    unlabelled = dataclasses.replace(base.loss.unlabelled, class_weights=(0.9, 1.1))
    loss = dataclasses.replace(base.loss, unlabelled=unlabelled, burn_in_share=BURN_IN_SHARE)
    return dataclasses.replace(base, method="semires", ema=_teacher(base), loss=loss)


def semires_cpi(base: TrainConfig) -> TrainConfig:
    """SemiRES with composite parts integration; otherwise as `semires`, the teacher's decay included."""
    return _set(semires(base), "semires", match="cpi")


def omni_res_box(base: TrainConfig) -> TrainConfig:
    """Omni-RES with a box for every unlabelled object: more supervision than its rivals have.

    The teacher's decay is that of `semires`, warmed up in the embedded recipe alone. Released configs burn in for 15 of
    60 epochs; embedded it is `BURN_IN_SHARE`, as for the others. Sure background is not taught, so that a run that is
    well labels few pixels (embedded 4% at the least): the alarm asks for less than elsewhere.
    """
    burn_in = OMNI_BURN_IN_SHARE if _is_long(base) else BURN_IN_SHARE
    return dataclasses.replace(
        base,
        method="omni_res",
        alarm=dataclasses.replace(base.alarm, min_coverage=0.002),
        ema=_teacher(base),
        loss=dataclasses.replace(base.loss, burn_in_share=burn_in),
    )


def omni_res_point(base: TrainConfig) -> TrainConfig:
    """Omni-RES with a point for every unlabelled object: more supervision than its rivals have.

    The teacher's decay is that of `semires`, warmed up in the embedded recipe alone.
    """
    return _set(omni_res_box(base), "omni_res", weak_label="point")


def tscs_qdw(base: TrainConfig) -> TrainConfig:
    """3DResT's sampling by teacher-student consistency and quality-driven weighting.

    Summaries of the paper have a burn-in before the average starts; its length and the decay are not known here: OURS
    are those of `semires`. Without one the copies agree best while neither knows anything, and empty guesses join.
    """
    return dataclasses.replace(
        base,
        method="tscs_qdw",
        ema=_teacher(base),
        loss=dataclasses.replace(base.loss, burn_in_share=BURN_IN_SHARE),
    )


def augseg(base: TrainConfig) -> TrainConfig:
    """AugSeg: labelled regions pasted into unlabelled images the teacher is unsure of.

    Its teacher warms up as well, by min(decay, 1 - 1 / (n + 1)), and is a copy for an epoch; ours by `ema.warmup`.
    """
    unlabelled = dataclasses.replace(base.loss.unlabelled, mean_over="all")
    return dataclasses.replace(
        base,
        method="augseg",
        ema=EmaConfig(decay=0.999, warmup=True, teacher=True),
        loss=dataclasses.replace(base.loss, unlabelled=unlabelled),
    )


def ccvc(base: TrainConfig) -> TrainConfig:
    """CCVC: two networks that teach each other and are kept apart."""
    segmentor = dataclasses.replace(base.segmentor, second_branch=True)
    return dataclasses.replace(base, method="ccvc", segmentor=segmentor)


def catm(base: TrainConfig) -> TrainConfig:
    """FixMatch with class-adaptive thresholds."""
    return dataclasses.replace(base, method="catm")


def mllm_blend(base: TrainConfig) -> TrainConfig:
    """The linear blend of prior and prediction as target ("Baseline w/ MLLM")."""
    return dataclasses.replace(base, method="mllm_blend")


def agreement_filter(base: TrainConfig) -> TrainConfig:
    """Pixels on which prior and prediction agree, of samples whose maps agree as a whole."""
    return _set(mllm_blend(base), "blend", target="agree")


def _blend(percent: int) -> Change:
    def change(base: TrainConfig) -> TrainConfig:
        return _set(mllm_blend(base), "blend", prior_share=percent / 100)

    change.__doc__ = f"The linear blend with {percent}% of the prior."
    return change


def distillation(base: TrainConfig) -> TrainConfig:
    """The prior alone as target, whatever the network predicts: plain distillation of the frozen models."""
    return dataclasses.replace(base, method="distillation")


def selective_distillation(base: TrainConfig) -> TrainConfig:
    """Distillation, from half of the steps on of samples alone whose prior the network shares."""
    return _set(distillation(base), "distillation", select_from=0.5)


def _teacher(base: TrainConfig) -> EmaConfig:
    """The averaged teacher, its decay constant in a long run; it is evaluated and exported like every average."""
    return EmaConfig(decay=TEACHER_DECAY, warmup=not _is_long(base), teacher=True)


def _is_long(base: TrainConfig) -> bool:
    """Whether a run replaces what the teacher began with: the paper's does, of the embedded one 87% would be left."""
    return base.steps * (1.0 - TEACHER_DECAY) >= 1.0


def _set(config: TrainConfig, part: str, **values: Any) -> TrainConfig:
    return dataclasses.replace(config, **{part: dataclasses.replace(getattr(config, part), **values)})


COMPARISONS: dict[str, Change] = {
    "fixmatch": fixmatch,
    "resmatch": resmatch,
    "semires": semires,
    "semires-cpi": semires_cpi,
    "omni-res-box": omni_res_box,
    "omni-res-point": omni_res_point,
    "tscs-qdw": tscs_qdw,
    "augseg": augseg,
    "ccvc": ccvc,
    "catm": catm,
    "mllm-blend": mllm_blend,
    **{f"mllm-blend-{percent}": _blend(percent) for percent in (20, 30, 40, 50, 60, 70, 80)},
    "distillation": distillation,
    "selective-distillation": selective_distillation,
    "agreement-filter": agreement_filter,
}
"""System by name."""


# ---- ablations: the base is L2L's whole recipe -----------------------------------------------------------------------


def _parts(*parts: str) -> Change:
    def change(base: TrainConfig) -> TrainConfig:
        config = _set(base, "l2l", **{f"use_{part}": part in parts for part in ("spm", "sesm", "rple")})
        return config if "sesm" in parts else _set(config, "segmentor", sesm=None)

    names = {"spm": "fused prior", "sesm": "prior field", "rple": "learnt thresholds"}
    change.__doc__ = f"Ablation of L2L: {' and '.join(names[part] for part in parts)} alone."
    return change


def _operators(letters: str) -> Change:
    def change(base: TrainConfig) -> TrainConfig:
        sesm = dataclasses.replace(base.segmentor.sesm or SesmConfig(), operators=letters)
        return _set(base, "segmentor", sesm=sesm)

    change.__doc__ = (
        f"Ablation of L2L: structural operators {letters} of stages 1 to 4 (P linear, A attention)."
    )
    return change


def _static(percent: int) -> Change:
    def change(base: TrainConfig) -> TrainConfig:
        return _set(base, "l2l", use_rple=False, tau_fg=percent / 100)

    change.__doc__ = f"Ablation of L2L: no policy, foreground from {percent / 100} on."
    return change


def _without_reward(term: str) -> Change:
    def change(base: TrainConfig) -> TrainConfig:
        without: dict[str, Any] = {term: 0.0}
        reward = dataclasses.replace(base.rple.reward, **without)
        return _set(base, "rple", reward=reward)

    change.__doc__ = f"Ablation of L2L: the reward without its {term} term."
    return change


ABLATIONS: dict[str, Change] = {
    **{"-".join(parts): _parts(*parts) for parts in combinations(("spm", "sesm", "rple"), 2)},
    "spm": _parts("spm"),
    **{letters.lower(): _operators(letters) for letters in ("PPPP", "AAAA", "AAPP", "PPAA")},
    **{f"tau-{percent}": _static(percent) for percent in (50, 60, 70, 80, 90)},
    **{f"no-{term}": _without_reward(term) for term in ("margin", "consistency", "coverage")},
}
"""Ablation by name. Those named by parts of L2L leave out the others; the paper's row without any is `fixmatch`."""


# ---- beyond the paper: the base is L2L's whole recipe ----------------------------------------------------------------


def confident(base: TrainConfig) -> TrainConfig:
    """Beyond the paper: the fusion alone, prior and prediction equally confident, moved by the model's confidence.

    The embedded SAM 2 is under-confident inside its masks (median foreground 0.88, the network's 0.99), so that eq. 6
    follows the network nearly everywhere: the prior's logit is tripled, and neither map may say more than 0.98. Where
    they then contradict each other, lam is 0.5 + 0.5 (trust - 0.25): the prior is followed where the frozen model was
    among the more confident half of its answers, else the pixel is ignored. These numbers were found on the embedded
    data; at the paper's size nothing has been run.
    """
    config = _set(_parts("spm")(base), "l2l", tau_fg=0.7, tau_bg=0.3)
    return _set(config, "spm", eps=0.02, prior_sharpness=3.0, confidence_gain=0.5, confidence_centre=0.25)


def bold(base: TrainConfig) -> TrainConfig:
    """Beyond the paper: `confident` without the model's confidence: pixels where the two maps contradict are ignored.

    For priors that may be wrong however sure the frozen model was of them.
    """
    return _set(confident(base), "spm", confidence_gain=0.0)


def equal(base: TrainConfig) -> TrainConfig:
    """Beyond the paper: the fusion alone, prior and prediction of each sample rescaled to equal confidence.

    `bold` without numbers that were found on masks, whatever proposer made the prior; thresholds are the paper's.
    """
    return _set(_parts("spm")(base), "spm", equalise=True)


BEYOND: dict[str, Change] = {"confident": confident, "bold": bold, "equal": equal}
"""Fusion of our own by name."""
