"""A store of priors that is small enough for tests of batch jobs: drawn scenes, the tiny model, the quick engine."""

from pathlib import Path

from shared.synth.refshapes import write_refshapes


def priors_recipe(root: Path, scenes: int) -> list[str]:
    """Draw the scenes below `root`; gives the recipe's name and settings as a command takes them."""
    write_refshapes(root / "data", "refshapes", scenes, 0, progress=False)
    settings = {
        "data.root": root / "data",
        "cache_root": root / "stores",
        "splits": "train",
        "engine.kind": "transformers",
        "canary.mode": "skip",
    }
    return [
        "embedded-soft-box",
        *(part for item in settings.items() for part in ("--set", "{}={}".format(*item))),
    ]
