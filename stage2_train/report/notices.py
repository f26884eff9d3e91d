"""What a reader must know before believing the figures: a junk prior, an unequal comparison, a single seed."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stage2_train.report.prior_health import PriorHealth
from stage2_train.report.provenance import PROGRAM, train_command
from stage2_train.report.run_data import RunData, finite
from stage2_train.report.stats import spreads, summary_disagrees
from stage2_train.report.tables import number, short_names
from stage2_train.segmentor_config import UNCOUNTED, whole_network

JUNK_OIOU = 0.10
"""A frozen prior below this oIoU carries next to nothing."""
FEW_BOXES = 0.50
"""A store in which fewer answers than this hold a box is suspect."""
_SAME = {
    "optimiser": ("optim",),
    "views and text augmentation": ("weak", "strong", "text"),
    "precision": ("precision",),
    "image size": ("segmentor.vision.image_size",),
}
"""Settings that methods that are compared share, and what a reader calls them."""


@dataclass(frozen=True, kw_only=True)
class Notice:
    """One warning or remark."""

    level: str
    """`alarm` (do not trust the figures), `warn` (read with care) or `note`."""
    title: str
    """The point in a few words."""
    text: str
    """What was seen and what it means."""


def notices(
    runs: list[RunData], healths: dict[str, PriorHealth], left_out: Sequence[Path] = ()
) -> list[Notice]:
    """All warnings, gravest first.

    Args:
        runs: The runs of the report.
        healths: Store health by run name.
        left_out: Folders of runs that belong to it but are not finished.
    """
    found = (
        _prior_notices(runs, healths)
        + _no_prior_score(runs)
        + _prior_beats_model(runs)
        + _uncounted_labels(runs)
        + _shared_images(runs)
        + _partial(runs)
        + _misplaced(runs)
        + _unequal(runs)
        + _mixed_code(runs)
        + _left_out(left_out)
        + _undone(runs)
        + _files(runs)
    )
    if any(run.evals for run in runs) and not spreads(runs):
        found.append(
            Notice(
                level="note",
                title="One seed",
                text="Nothing was run with several seeds and all else equal, so the spread between seeds is unknown. "
                "A small difference here can be chance; the intervals only cover the choice of test images.",
            )
        )
    order = ("alarm", "warn", "note")
    return sorted(found, key=lambda notice: order.index(notice.level))


def _prior_notices(runs: list[RunData], healths: dict[str, PriorHealth]) -> list[Notice]:
    reasons: dict[tuple[str, ...], list[str]] = {}
    for run in runs:
        found = _junk_reasons(run, healths.get(run.name))
        if found:
            reasons.setdefault(tuple(found), []).append(run.name)
    return [
        Notice(
            level="alarm",
            title="The prior behind " + _names(names) + " is not to be trusted",
            text=" ".join(found)
            + " Whatever a method gained or lost with it says nothing about the method. Check stage 1 first.",
        )
        for found, names in reasons.items()
    ]


def _junk_reasons(run: RunData, health: PriorHealth | None) -> list[str]:
    found: list[str] = []
    if not run.store:
        return found
    if health is not None and health.canary == "failed":
        found.append(f"Its grounding canary failed ({health.canary_detail or 'no detail kept'}).")
    if health is not None and health.canary == "skipped":
        found.append(
            "Its grounding canary was skipped, so nobody checked that the model points at things at all."
        )
    scores = {s: d.score("original", "oiou", source="prior") for s, d in run.evals.items()}
    low = {split: score for split, score in scores.items() if score is not None and score < JUNK_OIOU}
    if low:
        listed = ", ".join(f"{score:.3f} on {split}" for split, score in low.items())
        found.append(
            f"By itself it scores an oIoU of {listed}; below {JUNK_OIOU:.2f} it carries next to nothing."
        )
    share = health.usable_share if health is not None else None
    if health is not None and share is not None and share < FEW_BOXES:
        listed = ", ".join(f"{name} {count:,}" for name, count in health.statuses[:4])
        found.append(f"Only {share:.0%} of its {health.num_rows:,} answers hold a usable box ({listed}).")
    return found


def _uncounted_labels(runs: list[RunData]) -> list[Notice]:
    """Runs that go on with a network somebody else trained on masks."""
    found: dict[str, list[str]] = {}
    for run in runs:
        config = run.config.get("config")
        segmentor = config.get("segmentor") if isinstance(config, dict) else None
        if file := whole_network(segmentor) if isinstance(segmentor, dict) else "":
            found.setdefault(file, []).append(run.name)
    return [
        Notice(
            level="warn",
            title=UNCOUNTED.capitalize(),
            text=f"{_names(names)}: segmentor.weights names {file}. The masks it was trained with come on top of the "
            "share of labels that is stated, and a run without it does not have them. Towers that have seen no mask "
            "are named by segmentor.vision.weights and segmentor.text.weights.",
        )
        for file, names in found.items()
    ]


def _shared_images(runs: list[RunData]) -> list[Notice]:
    """Scores of sentences whose images training has seen, or may have."""
    scored = [(f"{run.name} on {s}", d) for run in runs for s, d in run.evals.items()]
    counts = [(where, data, data.summary.get("shared_with_train", 0)) for where, data in scored]
    seen = [f"{where}: {shared:,} of {data.num:,}" for where, data, shared in counts if shared]
    unknown = [where for where, _, shared in counts if shared is None]
    found = []
    if seen:
        text = f"Sentences whose image is also a training image: {'; '.join(seen)}. The network knows those images."
        found.append(Notice(level="warn", title="Scored on images that were trained on", text=text))
    if unknown:
        text = f"{_names(unknown)}: the run's own data were gone, or had changed, when these sentences were scored."
        title = "Not known whether images were trained on"
        found.append(Notice(level="warn", title=title, text=text))
    return found


def _partial(runs: list[RunData]) -> list[Notice]:
    """Scores that do not cover the whole split."""
    cut = [
        f"{run.name} on {s}: {d.num:,}"
        for run in runs
        for s, d in run.evals.items()
        if d.summary.get("limit")
    ]
    if not cut:
        return []
    text = f"Sentences scored: {'; '.join(cut)}. They are evenly spaced over the split, not the whole of it."
    return [Notice(level="warn", title="Scored on a part of the sentences", text=text)]


def _no_prior_score(runs: list[RunData]) -> list[Notice]:
    """Splits on which nobody knows what the prior alone scores."""
    splits = dict.fromkeys(split for run in runs for split in run.evals)
    lacking = []
    for split in splits:
        evals = [run.evals[split] for run in runs if split in run.evals]
        if all(data.score("original", "oiou", source="prior") is None for data in evals):
            reason = next((note for data in evals if (note := data.summary.get("prior_note"))), "not scored")
            lacking.append(f"{split} ({reason})")
    if not lacking:
        return []
    text = f"Missing on {'; '.join(lacking)}. Without it no gain can be credited to the training method."
    return [Notice(level="warn", title="The frozen prior's own score is missing", text=text)]


def _prior_beats_model(runs: list[RunData]) -> list[Notice]:
    """Where the prior's score is higher than a run's as they are shown, by metric and split."""
    metrics = {"oiou": "oIoU", "miou": "mIoU", "pr@0.5": "Pr@0.5"}
    shorts = short_names([run.name for run in runs])
    found: dict[str, list[str]] = {}
    for metric, called in metrics.items():
        for split in dict.fromkeys(split for run in runs for split in run.evals):
            for run in (run for run in runs if split in run.evals):
                scores = (
                    run.evals[split].score("original", metric, source=source) for source in ("", "prior")
                )
                model, prior = map(number, scores)
                if "–" not in (model, prior) and float(prior) > float(model):
                    found.setdefault(f"{called} on {split} {prior} against", []).append(
                        f"{model} ({shorts[run.name]})"
                    )
    if not found:
        return []
    listed = "; ".join(
        f"{where} {', '.join(models) if len(models) <= 3 else f'less in {len(models)} of {len(runs)} runs'}"
        for where, models in found.items()
    )
    return [
        Notice(
            level="note",
            title="The frozen prior alone scores higher than a trained model",
            text=f"At the original size, prior against model: {listed}. "
            "The model does not see the prior when it is tested; the prior is slower and needs the multimodal model.",
        )
    ]


def _misplaced(runs: list[RunData]) -> list[Notice]:
    """Runs that were shown priors of other objects on purpose; the prior's own score is of those in the store."""
    found = [f"{run.name} {share:.0%}" for run in runs if (share := finite(run.settings("misplaced_priors")))]
    if not found:
        return []
    text = (
        f"Share of the priors in training that were of another object, as asked for by misplaced_priors: "
        f"{', '.join(found)}. The scores of the frozen prior alone are of the priors as they are stored."
    )
    return [Notice(level="warn", title="Trained with misplaced priors", text=text)]


def _unequal(runs: list[RunData]) -> list[Notice]:
    """Differences between runs, other than the method, that a reader would not guess."""
    checks = {
        "data set": [_text(run.data.get("dataset"), run.data.get("split_by")) for run in runs],
        "annotations": [_text(run.config.get("data_fingerprint")) for run in runs],
        "share of labels": [_text(run.fraction) for run in runs],
        "weak labels": [run.weak_label or "none" for run in runs],
        "code": [_text(*run.codes) for run in runs],
        "labelled images (split hash)": [_text(run.split.get("hash")) for run in runs],
        "prior store": [_text(run.store.get("fingerprint")) for run in runs if run.store],
        "global batch": [_text(run.config.get("global_batch")) for run in runs],
        "number of processes": [_text(*run.num_processes) for run in runs],
        "optimiser steps": [_text(run.done.get("step")) for run in runs if run.done],
        "share of misplaced priors": [_text(run.settings("misplaced_priors")) for run in runs if run.store],
        **{name: [_settings_text(run, fields) for run in runs] for name, fields in _SAME.items()},
    }
    for split in dict.fromkeys(split for run in runs for split in run.evals):
        evals = [run.evals[split] for run in runs if split in run.evals]
        checks[f"ground truth of {split}"] = [_text(data.summary.get("masks")) for data in evals]
    differ = [name for name, values in checks.items() if len({v for v in values if v}) > 1]
    if not differ:
        return []
    return [
        Notice(
            level="warn",
            title="The runs differ in more than the method",
            text=f"They do not share: {', '.join(differ)}. See “How this was made” for the values; "
            "the hash of a ground truth is `masks` in `eval/<split>.json`.",
        )
    ]


def _mixed_code(runs: list[RunData]) -> list[Notice]:
    """Runs that one state of the code began and another went on with."""
    names = [run.name for run in runs if len(run.codes) > 1]
    if not names:
        return []
    return [
        Notice(
            level="warn",
            title="Trained by more than one state of the code",
            text=f"{_names(names)}: begun by one and continued by another; see “How this was made”. Neither state "
            "alone gives these figures again.",
        )
    ]


def _left_out(folders: Sequence[Path]) -> list[Notice]:
    """Runs of a grid that failed, or still go on."""
    if not folders:
        return []
    names = ["/".join(path.parts[-3:]) for path in folders]
    text = f"{_names(names)}: begun, not finished and scored. If they failed, the others are a choice of the luckier."
    return [Notice(level="warn", title="Runs of a grid are left out", text=text)]


def undone(runs: list[RunData]) -> list[str]:
    """What is still to be done of each run that is not finished or not scored, and by which command, a line each."""
    lines = []
    for run in runs:
        steps = finite(run.settings("steps"))
        of_all = f" of {steps:,.0f}" if steps else ""
        if not run.done:
            how = train_command(run, "--resume")
            lines.append(f"{run.name}: not finished (logged to step {run.logged_step:,}{of_all}): {how}")
        elif not run.evals:
            lines.append(f"{run.name}: finished, not scored: {shlex.join([PROGRAM, 'eval', str(run.path)])}")
    return lines


def _undone(runs: list[RunData]) -> list[Notice]:
    lines = undone(runs)
    return [Notice(level="warn", title="Not finished or not scored", text="; ".join(lines))] if lines else []


def scored_stores(runs: list[RunData]) -> list[str]:
    """Where the frozen prior's own score comes from, for runs that read no store: as their evaluation noted it."""
    notes = (
        str(data.summary.get("prior_note") or "")
        for run in runs
        if not run.store
        for data in run.evals.values()
    )
    return list(dict.fromkeys(note.removeprefix("from ") for note in notes if note.startswith("from ")))


def missing_parts(runs: list[RunData]) -> list[str]:
    """What could not be read of each run, a line each."""
    return [f"{run.name}: {item}" for run in runs for item in run.missing]


def _files(runs: list[RunData]) -> list[Notice]:
    lines = missing_parts(runs)
    lines += [
        f"{run.name}: {text}"
        for run in runs
        for data in run.evals.values()
        if (text := summary_disagrees(data))
    ]
    if not lines:
        return []
    return [Notice(level="warn", title="Parts are missing", text="; ".join(lines) + ".")]


def _settings_text(run: RunData, fields: Sequence[str]) -> str:
    """Settings of a run as one text; "" if it does not say."""
    values = {field: run.settings(field) for field in fields}
    return "" if None in values.values() else json.dumps(values, sort_keys=True)


def _text(*parts: Any) -> str:
    return " ".join(str(part) for part in parts if part is not None)


def _names(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
