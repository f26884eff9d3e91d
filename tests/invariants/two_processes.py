"""Body of the two-process tests, started by torchrun: `two_processes.py ROOT OUT MICRO_BATCHES BURN_IN`."""

import json
import sys
from pathlib import Path

import torch.distributed as dist

from stage2_train.evaluate import evaluate_run
from stage2_train.train import train
from tests.invariants.test_processes import config_of

root, out = Path(sys.argv[1]), Path(sys.argv[2])
train(config_of(root, *map(int, sys.argv[3:])), out, quiet=True)
result = evaluate_run(out, "val", batch=3)
Path(f"{out}.rank{dist.get_rank()}.json").write_text(json.dumps({"world": dist.get_world_size(), **result}))
dist.destroy_process_group()
