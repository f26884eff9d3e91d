"""One process with a device that is not the CPU: `python -m tests.stage1_priors.other_device_session OUT`.

SAM 2, SAM and the Transformers engine answer on the CPU, then on the device (`tests.other_device`): OUT/result.json.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from stage1_priors import sam, transformers_engine
from tests.stage1_priors.sam_folders import save_random_sam, save_random_sam2
from tests.stage1_priors.test_sam import picture, prompts_of, proposer_of
from tests.stage1_priors.test_transformers_engine import engine_of, requests_of
from tests.stage1_priors.tiny_model import save_random_model

FOLDERS = {"sam2": save_random_sam2, "sam": save_random_sam}


def main(out: Path) -> None:
    """First without the device: it cannot be taken back."""
    folders = {kind: save(out / kind) for kind, save in FOLDERS.items()}
    model = save_random_model(out / "model")
    found = [answers(folders, model)]

    from tests.other_device import DEVICE, OtherDevice

    sam.own_device = transformers_engine.own_device = lambda: DEVICE
    torch.inference_mode = torch.no_grad  # type: ignore[assignment, misc]
    with OtherDevice():
        found.append(answers(folders, model))
    (out / "result.json").write_text(json.dumps(found))


def answers(folders: dict[str, Path], model: Path) -> dict[str, Any]:
    """What the three say, JSON-able; every number is the CPU's or the device's own."""
    prompts = prompts_of([picture(n) for n in range(3)], [0, 0, 1, 2], no_box=[1])
    given: dict[str, Any] = {}
    for kind in folders:
        proposer = proposer_of(folders, kind)
        proposals = proposer.propose(prompts)
        given[kind] = [str(proposer._device), proposals.map_BGG.tolist(), proposals.iou_B.tolist()]
    engine = engine_of(model, top_logprobs=3, num_samples=2, sample_temperature=1.0)
    replies = engine.collect(requests_of(model, 2))
    given["engine"] = [
        str(engine._device),
        [[reply.error, reply.text, *(text for text, _ in reply.samples)] for reply in replies],
        [[token.logprob for token in reply.tokens] for reply in replies],
    ]
    return given


if __name__ == "__main__":
    main(Path(sys.argv[1]))
