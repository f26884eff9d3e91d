"""Which GPUs there are, without loading torch."""

import itertools
import os
import subprocess


def visible_gpus() -> list[str]:
    """Ids of the GPUs this process may use, as CUDA_VISIBLE_DEVICES would name them; empty on a machine without."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        ids = (part.strip() for part in named.split(","))
        return list(itertools.takewhile(lambda one: one not in ("", "-1"), ids))  # nor does CUDA look further
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return []
    return listed.stdout.split() if listed.returncode == 0 else []
