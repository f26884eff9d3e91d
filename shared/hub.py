"""Models named by a repository of the Hugging Face Hub: found in the local cache, or fetched into it beforehand.

Runs and jobs only ever look into the cache. `fetch` fills it, in one step before them; what is there is not asked for
again, so that a branch keeps the commit it had. Neither imports torch.
"""

import json
from collections.abc import Iterable, Sequence
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
TOKENIZER_SETTINGS = ("tokenizer_config.json",)
"""What its special tokens are, and mostly how a chat is spelt."""
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
"""How a model wants its images is said in one of them."""

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
    parts: tuple[tuple[str, ...], ...] = ()
    """What must be there beside a model's config and weights: of each group of file names one."""

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
    found, lacking = _snapshot(model)
    return None if lacking else found


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
    if _lacks(folder, model):
        raise DataError(
            f"{_missing(model)}, and the Hub gave no more: it was not asked (HF_HUB_OFFLINE), or the repository holds "
            "another kind of model"
        )
    return folder


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
        stage = "priors" if model.field in ("model.path", "proposer.path") else "train"
        raise DataError(f"{_missing(model)}; `l2l fetch {stage} RECIPE` puts it there")
    return found


def _snapshot(model: HubModel) -> tuple[Path | None, str]:
    """What the local cache holds of a model, and what it lacks, for a message; nothing if it is whole, or not there.

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
    except LocalEntryNotFoundError as error:
        # Newer versions know the list of files of what they have fetched once.
        part = getattr(error, "snapshot_path", None)
        return None, "" if part is None else _listed(_lacks(Path(part), model) or ["some of its files"])
    except HFValidationError as error:
        raise DataError(f"{model.field}: {model.name!r} is no folder, and no name of a repository") from error
    return found, _listed(_lacks(found, model))


def _missing(model: HubModel) -> str:
    _, lacking = _snapshot(model)
    return (
        f"{model.field}: {model.name} (revision {model.revision}) is neither a folder nor whole in the local Hugging "
        f"Face cache {cache_folder()}" + (f", which lacks {lacking}" if lacking else "")
    )


def _lacks(folder: Path, model: HubModel) -> list[str]:
    """What a snapshot lacks of what is wanted of it; other programs fetch single files into the same cache."""
    groups = (("config.json",), *model.parts) if model.has_weights else (VOCABULARIES, *model.parts)
    lacking = [" or ".join(names) for names in groups if not any((folder / name).is_file() for name in names)]
    return lacking + (_lacking_weights(folder) if model.has_weights else [])


def _lacking_weights(folder: Path) -> list[str]:
    """Weights that are not there; of weights in several files those, as after a fetch that was cut off."""
    index = folder / _INDEX
    if not index.is_file():
        return [] if any(path for name in (WEIGHTS, OLD_WEIGHTS) for path in folder.glob(name)) else [WEIGHTS]
    try:
        parts = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{index}: damaged, not an index of weights ({error})") from error
    return sorted(part for part in parts if not (folder / part).is_file())


def _listed(names: Sequence[str]) -> str:
    """Some names for a message: three, and how many more there are."""
    more = f" and {len(names) - 3} more files" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _reason(error: Exception) -> str:
    """What went wrong, in one line; the cause where the library only adds that nothing is in the cache."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    told = (error.__cause__ if isinstance(error, LocalEntryNotFoundError) else None) or error
    return f"{type(told).__name__}: {' '.join(str(told).split())}"[:300]
