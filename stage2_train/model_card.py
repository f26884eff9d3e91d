"""The model card, `model/README.md`: what the network was trained on and how it scored, filled from the run's files.

Written when a run ends and again whenever it is scored, so that the card never claims what was not measured.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from shared.json_files import read_json
from shared.store.publish import publish_file
from stage2_train.card_template import CARD_TEMPLATE, card_data
from stage2_train.segmentor_config import UNCOUNTED, whole_network

_METRICS = ("oiou", "miou", "pr@0.5", "pr@0.7", "pr@0.9")


def write_card(run: Path) -> None:
    """Write the card of a run whose `model/` is there.

    Raises:
        DataError: A file of the run that cannot be read.
    """
    publish_file(run / "model" / "README.md", str(model_card(run)).encode())


def model_card(run: Path) -> ModelCard:
    """The card, with the network's own scores also as the Hub's evaluation results."""
    record, split = read_json(run / "config.json"), read_json(run / "split.json")
    data = record["config"]["data"]
    name = f"{record['method']} on {data['dataset']}"
    results = [read_json(path) for path in sorted((run / "eval").glob("*.json"))]
    lines = ["## Training", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in _facts(record, split).items()]
    known = record.get("data_fingerprint")
    lines += ["", "## Scores", "", *_scores(results, data, known)]
    lines += ["", "## Limits", "", "Trained with few masks; confidences are not calibrated."]
    if file := whole_network(record["config"]["segmentor"]):
        lines.append(f"The training {UNCOUNTED} among the labelled ({file}).")
    head = card_data(str(record["method"]))
    found = _hub_results([result for result in results if _is_own(result, known)], data)
    if found:
        head |= {"model_name": name, "eval_results": found}
    return ModelCard.from_template(
        ModelCardData(**head), template_str=CARD_TEMPLATE, title=name, body="\n".join(lines)
    )


def _is_own(result: Mapping[str, Any], known: str | None) -> bool:
    """Whether a score is of the data that the run was trained on, whose annotations are `known`."""
    scored = result.get("data", {})
    return not scored.get("name") and scored.get("annotations", known) == known


def _hub_results(results: Sequence[Mapping[str, Any]], data: Mapping[str, Any]) -> list[EvalResult]:
    """The network's scores on its own data, at the images' original size."""
    return [
        EvalResult(
            task_type="image-segmentation",
            task_name="Referring image segmentation",
            dataset_type=data["dataset"],
            dataset_name=f"{data['dataset']} ({data['split_by']})",
            dataset_split=result["split"],
            metric_type=metric,
            metric_name=metric,
            metric_value=round(result["original"][metric], 4),
        )
        for result in results
        for metric in ("oiou", "miou")
    ]


def _facts(record: Mapping[str, Any], split: Mapping[str, Any]) -> dict[str, Any]:
    config = record["config"]
    side = config["segmentor"]["vision"]["image_size"]
    store = record.get("store")
    weak = split.get("weak_label")
    return {
        "method": record["method"],
        "recipe": " ".join([record["recipe"] or "-", *map(_override, record["overrides"])]),
        "data": f"{config['data']['dataset']} ({config['data']['split_by']})",
        "labelled": f"{len(split['image_ids'])} images{_of_all(split)}, {split['num_sentences']} sentences (hash "
        f"{split['hash']})" + (f", and a {weak} for every other object" if weak else ""),
        "unlabelled": f"{split['num_unlabelled_sentences']} sentences",
        "prior store": store["fingerprint"] if store else "none",
        "seed": record["seed"],
        "optimiser steps": config["steps"],
        "input": f"{side} x {side} pixels, aspect ratio ignored",
        "versions": ", ".join(f"{name} {number}" for name, number in record["versions"].items()),
    }


def _of_all(split: Mapping[str, Any]) -> str:
    total = split.get("num_train_images")
    return f" of {total} train images" if total else ""


def _override(text: str) -> str:
    """`--set name=value`; where files lie on one machine is nobody else's business."""
    name, _, value = text.partition("=")
    return f"--set {name}=..." if "/" in value else f"--set {text}"


def _scores(results: Sequence[Mapping[str, Any]], data: Mapping[str, Any], known: str | None) -> list[str]:
    """A table of every split that was scored, both frames named, the frozen prior beside the network."""
    if not results:
        return ["Not scored yet."]
    lines = [
        f"On {data['dataset']} where no other data are named; every sentence once. Frames: the images' original size, "
        "and the network's input.",
        "The frozen prior is the large model's own mask, which this network never sees when it is used.",
        "",
        "| split | sentences | frame | scored | " + " | ".join(_METRICS) + " |",
        "|" + "---|" * (4 + len(_METRICS)),
    ]
    for result in results:
        size, split = "x".join(map(str, result["resolution"])), result["split"]
        if not _is_own(result, known):
            split += f" (other data: {result['data']['dataset']}, {result['data']['split_by']})"
        for scorer, found in (("network", result), ("frozen prior", result.get("prior"))):
            for frame, shown in (("original", "original"), ("model", size)):
                if found:
                    cells = " | ".join(f"{found[frame][name]:.4f}" for name in _METRICS)
                    lines.append(f"| {split} | {result['num']} | {shown} | {scorer} | {cells} |")
        if not result.get("prior"):
            lines.append(f"| {split} | | | frozen prior | not known" + " |" * len(_METRICS))
    return lines
