"""What the scripts that retrain an embedded model have in common: command line, and a folder per unfinished run."""

import argparse
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from shared.errors import DataError


def training_folder(config: Any, out: Path) -> tuple[Path, dict[str, Any]]:
    """The folder `OUT.training` of a run's checkpoints, made or found, and the recipe it belongs to.

    Args:
        config: The recipe, a dataclass of plain values.
        out: Where the finished model will lie.

    Raises:
        DataError: A run of another recipe lies there.
    """
    folder = out.with_name(out.name + ".training")
    folder.mkdir(parents=True, exist_ok=True)
    recipe: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    path = folder / "recipe.json"
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != recipe:
        raise DataError(f"{folder} holds a run of another recipe; remove it or choose another --out")
    path.write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
    return folder, recipe


def parse_arguments(description: str, steps: int, out: Path) -> argparse.Namespace:
    """Options `--minutes`, `--steps` and `--out` with their defaults; exits where they make no sense."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--minutes", type=float, default=None, help="anneal over this much time, not over steps"
    )
    parser.add_argument("--steps", type=int, default=steps, help="optimizer steps")
    parser.add_argument("--out", type=Path, default=out, help="folder to write")
    arguments = parser.parse_args()
    if arguments.minutes is not None and not math.isfinite(arguments.minutes):
        parser.error("--minutes must be finite")
    return arguments
