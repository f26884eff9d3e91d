"""Models named by a repository of the Hugging Face Hub: found in the local cache, or fetched into it beforehand.

Runs and jobs only ever look into the cache. `fetch` fills it, in one step before them; what is there is not asked for
again, so that a branch keeps the commit it had. Neither imports torch.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from shared.errors import DataError

SETTINGS = ("*.json", "*.txt", "*.jinja", "*.model")
"""Files of a model or tokenizer beside the weights; what else a repository holds is not fetched."""
WEIGHTS = "*.safetensors"
OLD_WEIGHTS = "pytorch_model*.bin"
"""What a repository without safetensors holds instead."""

VOCABULARIES = ("vocab.txt", "tokenizer.json")
"""A tokenizer holds one of them."""

_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, kw_only=True)
class HubModel:
    """A model that a setting names by its repository."""

    field: str
    """The setting, for messages."""
    name: str
    """Repository, `owner/name`."""
    revision: str = "main"
    """Branch, tag or commit."""
    has_weights: bool = True
    """False for a tokenizer, of which no weights are needed."""

    @property
    def patterns(self) -> list[str]:
        """Names of the files that are needed."""
        return [*SETTINGS, *([WEIGHTS] if self.has_weights else [])]


def is_repository(name: str) -> bool:
    """Whether a name can be that of a repository: it has its form, and no folder is called so."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).is_dir()


def cache_folder() -> Path:
    """The local cache, as HF_HUB_CACHE, HF_HOME or huggingface_hub's own default say."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser().resolve()


def cached(model: HubModel) -> Path | None:
    """Folder of a model in the local cache, named after its commit; None if it is not there whole.

    Raises:
        DataError: No name of a repository.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        found = Path(
            snapshot_download(
                model.name, revision=model.revision, local_files_only=True, allow_patterns=model.patterns
            )
        )
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise DataError(f"{model.field}: {model.name!r} is no folder, and no name of a repository") from error
    return found if _is_whole(found, model.has_weights) else None


def fetch(model: HubModel) -> Path:
    """Folder of a model in the local cache, fetched if it is not there.

    Raises:
        DataError: It is not there and cannot be fetched; one line says why and what to do.
    """
    from huggingface_hub import snapshot_download

    found = cached(model)
    if found is not None:
        return found
    try:
        folder = Path(snapshot_download(model.name, revision=model.revision, allow_patterns=model.patterns))
        if model.has_weights and not any(folder.glob(WEIGHTS)):
            snapshot_download(model.name, revision=folder.name, allow_patterns=OLD_WEIGHTS)
    except Exception as error:  # of the HTTP client too, which is another one from version to version
        raise DataError(
            f"{_missing(model)}, and it cannot be fetched ({_reason(error)}); fetch it where the Hub is in reach, with "
            "HF_HOME on a disk that both machines see, or name a folder"
        ) from error
    found = cached(model)
    if found is None:
        what = "config.json with whole weights" if model.has_weights else " or ".join(VOCABULARIES)
        raise DataError(f"{model.field}: {model.name} (revision {model.revision}) holds no {what}")
    return found


def fetch_all(models: Iterable[HubModel]) -> list[dict[str, str]]:
    """Fetch what is not in the cache yet.

    Returns:
        One object a model: `field`, `repository`, `revision`, `commit` and `folder`.

    Raises:
        DataError: As `fetch`.
    """
    answers = []
    for model in models:
        folder = fetch(model)
        answers.append(
            {
                "field": model.field,
                "repository": model.name,
                "revision": model.revision,
                "commit": folder.name,
                "folder": str(folder),
            }
        )
    return answers


def require_cached(model: HubModel) -> Path:
    """Folder of a model in the local cache.

    Raises:
        DataError: It is not there.
    """
    found = cached(model)
    if found is None:
        raise DataError(f"{_missing(model)}; `l2l fetch priors` or `l2l fetch train` puts it there")
    return found


def _missing(model: HubModel) -> str:
    return (
        f"{model.field}: {model.name} (revision {model.revision}) is neither a folder nor whole in the local Hugging "
        f"Face cache {cache_folder()}"
    )


def _is_whole(folder: Path, has_weights: bool) -> bool:
    """Whether a snapshot holds what is wanted of it; other programs fetch single files into the same cache."""
    if has_weights:
        return (folder / "config.json").is_file() and _has_all_weights(folder)
    return any((folder / name).is_file() for name in VOCABULARIES)


def _has_all_weights(folder: Path) -> bool:
    """Whether there are weights, and of weights in several files all, as is not so after a fetch that was cut off."""
    index = folder / _INDEX
    if not index.is_file():
        return any(path for name in (WEIGHTS, OLD_WEIGHTS) for path in folder.glob(name))
    try:
        parts = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{index}: damaged, not an index of weights ({error})") from error
    return all((folder / part).is_file() for part in parts)


def _reason(error: Exception) -> str:
    """What went wrong, in one line; the cause where the library only adds that nothing is in the cache."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    told = (error.__cause__ if isinstance(error, LocalEntryNotFoundError) else None) or error
    return f"{type(told).__name__}: {' '.join(str(told).split())}"[:300]
