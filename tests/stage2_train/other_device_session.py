"""One process with a device that is not the CPU: `python -m tests.stage2_train.other_device_session DATA OUT`.

Every method trains two steps on the CPU and on the device (`tests.other_device`), runs of some kinds are then scored,
asked for masks and for pseudo-labels, and every tower makes a pass there and back. Writes OUT/result.json.
"""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

import stage2_train.export_labels
from stage2_train.backbones import TEXT_TOWERS, VISION_TOWERS
from stage2_train.config import TrainConfig
from stage2_train.evaluate import evaluate_run
from stage2_train.export_labels import export_labels
from stage2_train.method_facts import METHOD_FACTS
from stage2_train.predict import Predictor
from stage2_train.train import train
from tests import other_device
from tests.other_device import DEVICE
from tests.stage2_train.backbones.test_towers import batch, network, text_config, vision_config
from tests.stage2_train.miniature import mini_config, plain_config

STEP = "train_step"
USED = ("l2l", "semires")
"""Methods whose runs are used: one with a policy and a field, one with a teacher."""


def main(root: Path, out: Path) -> None:
    """All methods and towers, first without the device: it cannot be taken back."""
    configs = {name: plain_config(root, name, steps=2) for name in METHOD_FACTS}
    configs["l2l"] = mini_config(root, steps=2)
    towers = [
        *((kind, "bert") for kind in VISION_TOWERS),
        *(("swin", kind) for kind in TEXT_TOWERS if kind != "bert"),
    ]
    runs: dict[str, dict[str, Any]] = {
        name: {"cpu": trained(configs[name], out / "cpu" / name)} for name in configs
    }
    passes: dict[str, list[float]] = {" ".join(pair): [one_pass(*pair, on_device=False)] for pair in towers}
    Accelerator.device = property(lambda self: DEVICE)  # type: ignore[method-assign, assignment]
    stage2_train.export_labels.own_device = lambda: DEVICE
    with other_device.OtherDevice():
        for pair in towers:
            passes[" ".join(pair)].append(one_pass(*pair, on_device=True))
        for name, config in configs.items():
            run = out / "other" / name
            other_device.waits.clear()
            runs[name]["device"] = trained(config, run)
            waits = Counter((what, names[0]) for what, names in other_device.waits if STEP in names)
            runs[name]["waits"] = sorted([*site, count] for site, count in waits.items())
            if name in USED:
                runs[name]["used"] = used(run, self_guided=config.segmentor.sesm is not None)
    (out / "result.json").write_text(json.dumps({"runs": runs, "passes": passes}))


def trained(config: TrainConfig, run: Path) -> list[float]:
    """The loss of each step."""
    train(config, run, quiet=True)
    lines = map(json.loads, (run / "metrics.jsonl").read_text("utf-8").splitlines())
    return [line["loss"] for line in lines if line["kind"] == "train"]


def one_pass(vision: str, text: str, on_device: bool) -> float:
    """Mean square of the logits of a network in evaluation mode; its gradient is taken, too."""
    model = network(vision_config(vision), text_config(text)).eval()
    tensors = batch()
    if on_device:
        model, tensors = model.to(DEVICE), tuple(tensor.to(DEVICE) for tensor in tensors)
    value = model(*tensors).square().mean()
    value.backward()
    return float(value.detach())


def used(run: Path, self_guided: bool) -> dict[str, Any]:
    """What a finished run is used for."""
    scores = evaluate_run(run, "val", self_guided=self_guided, quiet=True)
    predict = Predictor.from_pretrained(run / "model", device=DEVICE)
    (prediction,) = predict([np.zeros((40, 60, 3), np.uint8)], ["red star"])
    return {
        "num": scores["model"]["num"],
        "mask": list(prediction.mask_hw.shape),
        "labels": export_labels(run, run / "labels", quiet=True)["num"],
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
