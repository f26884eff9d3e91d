"""The model card, `model/README.md`: what the network was trained on and how it scored, filled from the run's files.

Written when a run ends and again whenever it is scored, so that the card never claims what was not measured.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.store.publish import publish_file
from stage2_train.run_files import read_json

_METRICS = ("oiou", "miou", "pr@0.5", "pr@0.7", "pr@0.9")

_USE = """```python
from PIL import Image
from stage2_train.predict import Predictor

predict = Predictor.from_pretrained("path/to/this/folder")
(found,) = predict([Image.open("photo.jpg").convert("RGB")], ["the red mug on the left"])
found.mask_hw          # bool [height, width] of the photo
```

or `l2l predict path/to/this/folder photo.jpg "the red mug on the left"`.
`ReferringSegmentor.from_pretrained` of `stage2_train.segmentor` gives the bare network."""


def write_card(run: Path) -> None:
    """Write the card of a run whose `model/` is there.

    Raises:
        DataError: A file of the run that cannot be read.
    """
    publish_file(run / "model" / "README.md", model_card(run).encode())


def model_card(run: Path) -> str:
    """The card as Markdown with a YAML head."""
    record, split = read_json(run / "config.json"), read_json(run / "split.json")
    data = record["config"]["data"]
    head = {
        "license": "apache-2.0",
        "pipeline_tag": "image-segmentation",
        "library_name": "l2l",
        "tags": ["referring-image-segmentation", "semi-supervised", str(record["method"])],
    }
    lines = ["---", *(f"{name}: {json.dumps(value)}" for name, value in head.items()), "---", ""]
    lines += ["# Referring segmentation: " + f"{record['method']} on {data['dataset']}", ""]
    lines += [
        "An image and a sentence go in, a mask of the object the sentence names comes out.",
        "",
        _USE,
        "",
    ]
    lines += ["## Training", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in _facts(record, split).items()]
    lines += ["", "## Scores", "", *_scores(run, data)]
    lines += ["", "## Limits", "", "Trained with few masks; confidences are not calibrated."]
    return "\n".join(lines) + "\n"


def _facts(record: Mapping[str, Any], split: Mapping[str, Any]) -> dict[str, Any]:
    config = record["config"]
    side = config["segmentor"]["vision"]["image_size"]
    store = record.get("store")
    return {
        "method": record["method"],
        "recipe": " ".join([record["recipe"] or "-", *map(_override, record["overrides"])]),
        "data": f"{config['data']['dataset']} ({config['data']['split_by']})",
        "share of the masks": f"{record['fraction']:g}",
        "labelled": f"{len(split['image_ids'])} images, {split['num_sentences']} sentences (hash {split['hash']})",
        "unlabelled": f"{split['num_unlabelled_sentences']} sentences",
        "prior store": store["fingerprint"] if store else "none",
        "seed": record["seed"],
        "optimiser steps": config["steps"],
        "input": f"{side} x {side} pixels, aspect ratio ignored",
        "versions": ", ".join(f"{name} {number}" for name, number in record["versions"].items()),
    }


def _override(text: str) -> str:
    """`--set name=value`; where files lie on one machine is nobody else's business."""
    name, _, value = text.partition("=")
    return f"--set {name}=..." if "/" in value else f"--set {text}"


def _scores(run: Path, data: Mapping[str, Any]) -> list[str]:
    """A table of every split that was scored, both frames named, the frozen prior beside the network."""
    paths = sorted((run / "eval").glob("*.json"))
    if not paths:
        return ["Not scored yet."]
    lines = [
        f"On {data['dataset']}; every sentence once. Frames: the images' original size, and the network's input.",
        "The frozen prior is the large model's own mask, which this network never sees when it is used.",
        "",
        "| split | sentences | frame | scored | " + " | ".join(_METRICS) + " |",
        "|" + "---|" * (4 + len(_METRICS)),
    ]
    for path in paths:
        result = read_json(path)
        size = "x".join(map(str, result["resolution"]))
        for scorer, found in (("network", result), ("frozen prior", result.get("prior"))):
            for frame, shown in (("original", "original"), ("model", size)):
                if found:
                    cells = " | ".join(f"{found[frame][name]:.4f}" for name in _METRICS)
                    lines.append(f"| {result['split']} | {result['num']} | {shown} | {scorer} | {cells} |")
        if not result.get("prior"):
            lines.append(f"| {result['split']} | | | frozen prior | not known" + " |" * len(_METRICS))
    return lines
