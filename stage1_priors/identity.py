"""What a store's rows depend on, as one dictionary, and its fingerprint. Imports neither torch nor vLLM.

Everything that can change a row is a part: annotations, image bytes, splits, model files, prompt, sampling, engine and
package versions, parser and proposer. Speed settings (chunks, caches, memory, number of workers) are not, nor is what
the run does not read (`read_fields.py`). Rows are deterministic up to the numerics of the engine: the same versions
with other batch compositions may differ in the last bits of a log-probability.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from os.path import commonprefix
from pathlib import Path
from typing import Any

from shared.config import config_fingerprint
from shared.errors import DataError
from shared.hub import is_repository, require_cached
from shared.model_files import hash_model_files
from stage1_priors.answers import RESAMPLING
from stage1_priors.candidates import CANDIDATES_VERSION
from stage1_priors.config import ImportConfig, MllmConfig, PriorsConfig, ProposerConfig
from stage1_priors.engine import engine_versions
from stage1_priors.families import Family, SizeRules
from stage1_priors.families.identity import family_identity
from stage1_priors.hub_models import hub_model
from stage1_priors.mask_source import SOURCE_VERSION
from stage1_priors.parse import PARSER_VERSION
from stage1_priors.proposals import PROPOSER_VERSION
from stage1_priors.proposers import check_sam_folder
from stage1_priors.read_fields import asked_fields, proposing_fields

SHORT, CONTEXT = 60, 24
"""Letters of a text that is told whole, and of those around a difference in a longer one."""


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """Where the model lies and what it is."""

    folder: Path
    """Folder with `config.json`, weights and tokenizer."""
    identity: dict[str, str]
    """JSON-able: a repository id and commit, or the hash of a folder's files."""


def locate_model(model: MllmConfig | ProposerConfig) -> ModelFiles:
    """Find a model on this machine; nothing is downloaded.

    Args:
        model: Gives path and revision.

    Raises:
        DataError: Neither a model folder nor a complete snapshot in the local Hugging Face cache.
    """
    group = "proposer" if isinstance(model, ProposerConfig) else "model"
    folder = Path(model.path)
    if folder.is_dir():
        return ModelFiles(folder=folder, identity={"files": hash_model_files(folder)})
    if not is_repository(model.path):
        raise DataError(f"{group}.path: no folder {model.path!r}")
    found = require_cached(hub_model(group, model))
    return ModelFiles(folder=found, identity={"repository": model.path, "commit": found.name})


def images_fingerprint(identities: Mapping[str, str]) -> str:
    """One hash over all images, 32 hex digits.

    Args:
        identities: What `shared.image_hashes.identify_images` found.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(identities.items()):
        digest.update(f"{name}\x1f{value}\x1e".encode())
    return digest.hexdigest()


def locate_proposer(proposer: ProposerConfig) -> ModelFiles:
    """Find the model of a SAM proposer and see that it is of the kind asked for.

    Its identity holds the hash of the weights besides repository and commit.

    Raises:
        DataError: No such model on this machine, or one of another type.
    """
    if not proposer.path:
        raise DataError(
            f"proposer.path is empty; proposer.kind={proposer.kind} needs the model's folder or repository"
        )
    files = locate_model(proposer)
    check_sam_folder(proposer.kind, files.folder)
    return ModelFiles(
        folder=files.folder, identity={**files.identity, "files": hash_model_files(files.folder)}
    )


def identity_of(
    config: PriorsConfig,
    family: Family,
    rules: SizeRules,
    model: ModelFiles,
    data_fingerprint: str,
    images: str,
    proposer: ModelFiles | None,
    limit: int | None = None,
) -> dict[str, Any]:
    """Everything the rows depend on, as JSON gives it back (so that it compares equal to what a store holds).

    Args:
        config: The run's configuration.
        family: The model's family, with the words it is asked in.
        rules: Sizes of images the model sees.
        model: The model's files.
        data_fingerprint: Hash of the annotation files.
        images: Hash over the images.
        proposer: The files of the proposer's model; None if it has none.
        limit: Rows, where these are not all of the splits.
    """
    proposing = proposing_fields(config.proposer)
    if "candidates" in proposing:
        proposing["candidates"]["version"] = CANDIDATES_VERSION
    if proposer is not None:
        proposing["model"] = proposer.identity
    identity = {
        "data": {
            "dataset": config.data.dataset,
            "split_by": config.data.split_by,
            "annotations": data_fingerprint,
            "images": images,
            "image_hash": config.image_hash,
        },
        "splits": list(config.splits),
        **({} if limit is None else {"limit": limit}),
        "model": model.identity,
        "asked": {
            **asked_fields(config),
            **family_identity(family, rules),
            "min_pixels": rules.min_pixels,
            "max_pixels": rules.max_pixels,
            "resampling": RESAMPLING.name,
            "temperature": 0.0,
        },
        "engine": {"kind": config.engine.kind, **engine_versions(config.engine.kind)},
        "parser": {
            "version": PARSER_VERSION,
            "notation": f"{family.parser.name} {family.parser.version}",
            "order": family.order,
            "clip_tolerance": config.clip_tolerance,
        },
        "proposer": {"version": PROPOSER_VERSION, **proposing},
    }
    return json.loads(json.dumps(identity))


def import_identity_of(config: ImportConfig, data_fingerprint: str, masks: str) -> dict[str, Any]:
    """Everything the rows of imported masks depend on, JSON-able.

    Args:
        config: The run's configuration.
        data_fingerprint: Hash of the annotation files.
        masks: Hash over the files of the source.
    """
    return {
        "data": {
            "dataset": config.data.dataset,
            "split_by": config.data.split_by,
            "annotations": data_fingerprint,
        },
        "splits": list(config.splits),
        "proposer": {
            "kind": "import",
            "version": SOURCE_VERSION,
            "grid": config.grid,
            "masks": masks,
            "image_hash": config.image_hash,
        },
    }


def fingerprint_of(identity: dict[str, Any]) -> str:
    """16 hex digits of an identity."""
    return config_fingerprint(identity)


def graph_fingerprint(identity: dict[str, Any]) -> str:
    """16 hex digits of what the engine compiles: the model, its number format and length, and the engine's versions."""
    asked = {name: identity["asked"].get(name) for name in ("dtype", "max_model_len")}
    return config_fingerprint({"model": identity["model"], "asked": asked, "engine": identity["engine"]})


WHICH_ROWS = ("data", "splits", "limit")
"""Parts of an identity that say which rows there are; all others say what is in them."""


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Leaves in which two identities differ, in words: `"a.b: old -> new"`, in key order."""
    lines = []
    for key in sorted({*old, *new}):
        left, right = old.get(key), new.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            lines += differences(left, right, f"{prefix}{key}.")
        elif left != right:
            lines.append(f"{prefix}{key}: {' -> '.join(_where_they_differ(_words(left), _words(right)))}")
    return lines


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return " / ".join(map(_words, value))
    return "none" if value is None else str(value)


def _where_they_differ(left: str, right: str) -> tuple[str, str]:
    """Two long texts without most of what both begin and end with; short ones as they are."""
    if max(len(left), len(right)) <= SHORT:
        return left, right
    start = len(commonprefix([left, right]))
    end = len(commonprefix([left[start:][::-1], right[start:][::-1]]))
    first, last = max(start - CONTEXT, 0), max(end - CONTEXT, 0)
    before, after = "..." if first else "", "..." if last else ""
    return (
        f"{before}{left[first : len(left) - last]}{after}",
        f"{before}{right[first : len(right) - last]}{after}",
    )
