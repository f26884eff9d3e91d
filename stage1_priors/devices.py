"""Which GPUs there are, without loading torch."""

import itertools
import os
import subprocess

TIMEOUT_S = 15.0
"""A driver that is at fault lets nvidia-smi wait for ever."""


def visible_gpus() -> list[str]:
    """Ids of the GPUs this process may use, as CUDA_VISIBLE_DEVICES would name them; none if the driver shows none."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        ids = (part.strip() for part in named.split(","))
        return list(itertools.takewhile(lambda one: one not in ("", "-1"), ids))  # nor does CUDA look further
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return listed.stdout.split() if listed.returncode == 0 else []
