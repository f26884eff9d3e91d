"""Names of splits: their order, and what is meant by a name that is nearly a usual one."""

from collections.abc import Collection

TRAIN = "train"
"""The split that is learnt from."""

SPLIT_ORDER = (TRAIN, "val", "testA", "testB", "test")
"""Order in which splits are listed; any others follow by name."""

_USUAL = {
    **{name.lower(): name for name in SPLIT_ORDER},
    **dict.fromkeys(("validation", "valid", "dev", "eval"), "val"),
    "training": TRAIN,
}


def is_split_name(name: str) -> bool:
    """Whether a name can be part of a file's name, as that of its scores is, and of a list with commas."""
    return bool(name) and not name.startswith(".") and not set(name) & set("/\\,") and name.isprintable()


def ordered_splits(names: Collection[str]) -> tuple[str, ...]:
    """Split names in the order of `SPLIT_ORDER`, then others by name."""
    known = [name for name in SPLIT_ORDER if name in names]
    return (*known, *sorted(set(names) - set(SPLIT_ORDER)))


def usual_split(name: str) -> str:
    """The usual name of a split, as most people mean it.

    Blanks and case do not count, and `validation`, `valid`, `dev`, `eval` and `training` are known. A name that is none
    of those is returned without its outer blanks.
    """
    return _USUAL.get(name.strip().lower(), name.strip())
