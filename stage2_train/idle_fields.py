"""Fields of a config that its run does not read, so that a change to one of them is not taken for an experiment.

Nothing is refused: one list of `--set` options may serve several methods. Whoever set such a field is told.
"""

from collections.abc import Iterator
from dataclasses import fields

from stage2_train.config import TrainConfig
from stage2_train.method_facts import METHOD_FACTS

_SECTIONS = {"mllm_blend": "blend"}
"""Section of a method where it is not named after it; a method may have none."""
_EVERY_PIXEL = ("semires", "ccvc")
"""Methods whose pseudo-labels ignore no pixel."""


def untrained_parts(config: TrainConfig) -> list[str]:
    """A line for each part of the network that no sample trains."""
    if config.segmentor.sesm is None or config.trains_field:
        return []
    return [
        "segmentor.sesm is in the network all the same, and no sample trains it; a recipe without SESM, such as "
        "embedded-spm-rple, leaves it out"
    ]


def idle_fields(config: TrainConfig) -> Iterator[tuple[str, str]]:
    """Fields and whole sections that the run does not read, each with the reason."""
    sections = {field.name for field in fields(config)}
    for method in METHOD_FACTS:
        section = _SECTIONS.get(method, method)
        if section in sections and method != config.method:
            yield section, f"method is {config.method}"
    yield from _of_l2l(config)
    yield from _of_comparisons(config)
    yield from _of_pseudo_labels(config)
    if not config.uses_prior:
        yield "misplaced_priors", f"{_who(config)} reads no prior"
    if not config.uses_unlabelled:
        for field in ("batch_unlabelled", "loss.lambda_unlabelled"):
            yield field, _labelled_alone(config)
    if config.optim.name == "muon":
        for field in ("lr", "weight_decay", "decay_vectors"):
            yield f"optim.{field}", "optim.name is muon, whose settings are optim.muon.*"
    else:
        yield "optim.muon", f"optim.name is {config.optim.name}"
    if not config.segmentor.loaded_parts:
        for field in ("pretrained_lr_scale", "pretrained_prefixes"):
            yield f"optim.{field}", "no part of the network is read from weights"
    elif config.optim.pretrained_lr_scale == 1.0:
        yield "optim.pretrained_prefixes", "optim.pretrained_lr_scale is 1"
    if not config.ema.decay:
        for field in ("warmup", "export"):
            yield f"ema.{field}", "ema.decay is 0: no average is kept"
    if not config.eval_every:
        for field in ("val_split", "val_limit"):
            yield field, "eval_every is 0: nothing is validated while training"
    if config.image_ids_file:
        yield (
            "fraction",
            "image_ids_file names the labelled images; reports file the run under this share all the same",
        )
        if config.weak_label != "point":  # drawn with that seed where only masks are there
            yield "split_seed", "image_ids_file names the labelled images"
    elif config.fraction == 1 and config.weak_label != "point":
        yield "split_seed", "fraction is 1: every image is labelled"


def _of_pseudo_labels(config: TrainConfig) -> Iterator[tuple[str, str]]:
    """What shapes pseudo-labels and the strong view that learns from them."""
    taught = config.uses_unlabelled and config.loss.lambda_unlabelled > 0
    why = (
        "loss.lambda_unlabelled is 0: no pseudo-label is made"
        if config.uses_unlabelled
        else _labelled_alone(config)
    )
    if not taught:
        for field in (
            "strong",
            "text",
            "runtime.log_with_hidden_masks",
            "loss.unlabelled",
            "loss.rampup_steps",
        ):
            yield field, why
        if not config.ema.decay:
            yield "loss.burn_in_share", why
    elif not config.text.candidates:
        for field in (
            "table",
            "replace_rate",
            "insert_rate",
            "swap_rate",
            "delete_rate",
            "similarity",
            "protect",
        ):
            yield f"text.{field}", "text.candidates is 0: there is no strong text"
    if not taught or not config.alarm.patience:
        for field in ("grace_steps", "min_coverage", "min_foreground", "max_foreground"):
            yield f"alarm.{field}", "alarm.patience is 0" if taught else why
    if not taught and not _fuses_for_fields(config):
        yield "weak_eval", why
        if config.ema.decay:
            yield "ema.teacher", why
    elif config.ema.teacher:
        yield "weak_eval", "ema.teacher is true: an average predicts in evaluation mode always"


def _fuses_for_fields(config: TrainConfig) -> bool:
    """Whether labelled samples see fields that are made of their own weak view."""
    return config.trains_field and config.l2l.use_spm


def _labelled_alone(config: TrainConfig) -> str:
    return f"method {config.method} reads labelled samples alone"


def _who(config: TrainConfig) -> str:
    return f"method {config.method}" + (" without SPM and SESM" if config.method == "l2l" else "")


def _of_l2l(config: TrainConfig) -> Iterator[tuple[str, str]]:
    own = config.l2l
    if config.method != "l2l":
        for section in ("spm", "rple"):
            yield section, f"method is {config.method}"
        return
    untaught = (
        "loss.lambda_unlabelled is 0: no pseudo-label is made in training, by `l2l export-labels` alone"
    )
    if not own.use_spm:
        yield "spm", "l2l.use_spm is false"
    elif not config.loss.lambda_unlabelled and not _fuses_for_fields(config):
        yield "spm", untaught
    elif not config.spm.confidence_gain:
        yield "spm.confidence_centre", "spm.confidence_gain is 0"
    if own.use_rple and not config.loss.lambda_unlabelled:
        yield "rple", untaught
    if own.use_rple:
        for field in ("tau_fg", "tau_bg"):
            yield (
                f"l2l.{field}",
                "l2l.use_rple is true: the policy picks the thresholds, within rple.policy.*",
            )
    else:
        yield "rple", "l2l.use_rple is false"
    if not own.use_sesm:
        yield "l2l.field_probability", "l2l.use_sesm is false"


def _of_comparisons(config: TrainConfig) -> Iterator[tuple[str, str]]:
    if config.method in _EVERY_PIXEL:
        yield "loss.unlabelled.mean_over", f"method {config.method} teaches every pixel"
    if config.method == "mllm_blend":
        if config.blend.target == "soft":
            for field in ("blend.threshold", "loss.unlabelled"):
                yield field, "blend.target is soft"
        if config.blend.target == "agree":
            why = "blend.target is agree: nothing is taught by the blend, which only fused IoU and exported masks show"
            yield "blend.prior_share", why
        else:
            yield "blend.agreement", f"blend.target is {config.blend.target}"
    if config.method == "distillation" and config.distillation.select_from == 1.0:
        yield "distillation.select_iou", "distillation.select_from is 1: samples are never selected"
    if config.method == "semires":
        cpi = config.semires.match == "cpi"
        yield ("semires.iou", "semires.match is cpi") if cpi else ("semires.overlap", "semires.match is iom")
