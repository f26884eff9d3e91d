"""Body of the test of what processes share beside gradients, started by torchrun: `shared_state.py ROOT OUT`.

The second process is told to stop in a validation. Each writes the running statistics after its last step, and the
status with which it ends.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from stage2_train import scoring, training_run
from stage2_train.config import RuntimeConfig
from stage2_train.train import train
from tests.stage2_train.miniature import plain_config, segmentor_config

root, out, rank = Path(sys.argv[1]), Path(sys.argv[2]), int(os.environ["RANK"])
step, score = training_run.train_step, scoring._score_batch


def watched(accelerator: Any, networks: Any, *rest: Any, **named: Any) -> Any:
    result = step(accelerator, networks, *rest, **named)
    statistics = {name: value for name, value in networks.student.named_buffers() if "running" in name}
    torch.save(statistics, f"{out}.rank{rank}.pt")
    return result


def told_to_stop(*arguments: Any) -> Any:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return score(*arguments)


training_run.train_step, scoring._score_batch = watched, told_to_stop
config = plain_config(
    root,
    "supervised",
    segmentor=segmentor_config(root / "tokenizer", sesm=False, norm="batch"),
    steps=2,
    eval_every=2,
    runtime=RuntimeConfig(tensorboard=False, eval_batch=1),
)
status = 0
try:
    train(config, out, quiet=True)
except SystemExit as stopped:
    status = stopped.code
Path(f"{out}.rank{rank}.json").write_text(json.dumps(status))
dist.destroy_process_group()
