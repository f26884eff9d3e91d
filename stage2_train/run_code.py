"""Which states of the code trained a run: the one that began it, and those that went on with it.

`config.json` says the first. Every start that goes on from a checkpoint adds a record of kind `resume` to the log, with
its step and its code.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from shared.code_version import code_version
from shared.json_files import read_json
from shared.runlog import say

AFTERWARDS = (
    "shared/cluster/",
    "shared/console",
    "shared/data_commands",
    "shared/doctor",
    "stage2_train/ablate",
    "stage2_train/card_template",
    "stage2_train/cluster_jobs",
    "stage2_train/cluster_commands",
    "stage2_train/commands",
    "stage2_train/dry_run",
    "stage2_train/export_labels",
    "stage2_train/label_share",
    "stage2_train/model_card",
    "stage2_train/predict",
    "stage2_train/report/",
    "stage2_train/run_again",
)
"""Code that no weight and no score of a run depends on."""


def own_code() -> dict[str, str]:
    """Version and hash of the code that this process runs, as far as it trains and scores."""
    return code_version(("shared", "stage2_train"), AFTERWARDS)


def code_of(record: Mapping[str, Any]) -> str:
    """Hash of the code that began a run, by its `config.json`; "" if that does not say."""
    code = record.get("code")
    return str(code.get("sources") or "") if isinstance(code, Mapping) else ""


def codes_of(record: Mapping[str, Any], log: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Hashes of all the code that trained a run, in order, each once.

    A start that was followed by another one at the same step has left nothing. A run of an older code may not say.

    Args:
        record: Its `config.json`.
        log: The records of its `metrics.jsonl`.
    """
    by_step = {0: code_of(record)}
    for one in log:
        if one.get("kind") == "resume" and one.get("code"):
            by_step[one.get("step", 0)] = str(one["code"])
    return tuple(dict.fromkeys(filter(None, by_step.values())))


def say_other_code(folder: Path) -> None:
    """One note on standard error if another state of the code began the run of a folder, which is gone on with."""
    began, now = code_of(read_json(folder / "config.json")), own_code()["sources"]
    if began not in ("", now):
        say(f"note: this run began with code {began}, this is {now}")
