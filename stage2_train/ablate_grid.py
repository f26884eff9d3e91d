"""A grid of runs, read from a TOML file: methods x overrides x fractions x seeds over one data set.

    reference = "supervised"            # the method that differences are taken from
    recipe = "embedded"                 # of methods that name none
    fractions = [0.01, 0.05]
    seeds = [22, 23, 24]
    split_seeds = [0, 1, 2]             # optional: the draw of labelled images of each seed; default one draw
    splits = ["val"]                    # scored in every cell; default val
    set = ["steps=300"]                 # changes to every recipe, as `--set`

    [methods.supervised]
    recipe = "supervised-embedded"
    label = "Sup."                      # optional: what tables and charts call it; default its name

    [methods.l2l]

    [methods.l2l-no-field]
    recipe = "embedded-spm-rple"        # l2l.use_sesm=false would keep the module in the network, untrained

    [methods.l2l-static]
    set = ["l2l.use_rple=false"]

    [methods.l2l-sam]                   # a prior of its own, of the same data
    set = ["store=cache/priors/sam.zarr"]

    [overrides.plain]                   # optional; every method is run under every one of them
    [overrides.no-flip]
    set = ["weak.flip_probability=0"]

A cell's changes are those of the grid, of its method, of its override, then its fraction, seed and draw. Without
`split_seeds` the spread over seeds is that of the training alone: all of them learn from the same labelled images.
All methods read one prior store (the one that fits the data, or `store=PATH`) but for those that name another.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.config import apply_overrides, changed_field
from shared.errors import DataError, unknown_recipe
from stage2_train.config import TrainConfig
from stage2_train.recipes import RECIPES

_KEYS = {"reference", "recipe", "fractions", "seeds", "split_seeds", "splits", "set", "methods", "overrides"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
OWN_AXES = {"fraction": "fractions", "seed": "seeds", "split_seed": "split_seeds"}
"""Fields that the grid lists for its cells, and where."""
_SAME = ("data", "cache_root", "image_ids_file")
"""Fields that all cells must share: without them a difference would not be the method's."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of the grid."""

    method: str
    """Name of its method."""
    override: str
    """Name of its override; "" where the grid has none."""
    fraction: float
    """Share of the train images whose masks are used, as it was asked for."""
    seed: int
    """Seed of the run."""
    label: str
    """What tables and charts call its method."""
    recipe: str
    """Recipe that is changed."""
    changes: tuple[str, ...]
    """All changes to it, in order."""
    own: tuple[str, ...]
    """Those of them that its method names."""
    config: TrainConfig
    """The result."""

    @property
    def arm(self) -> str:
        """Method and override: what is compared."""
        return f"{self.method}+{self.override}" if self.override else self.method

    @property
    def shown(self) -> str:
        """The arm as tables and charts call it, with what it is given beside masks."""
        weak = self.config.weak_label
        label = f"{self.label} (+ {weak})" if weak else self.label
        return f"{label}+{self.override}" if self.override else label

    @property
    def name(self) -> str:
        """Folder of the run below the grid's."""
        return f"{self.arm}/fraction-{self.fraction:g}/seed-{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """All runs of a grid file."""

    path: Path
    """The file."""
    reference: str
    """Method that differences are taken from."""
    splits: tuple[str, ...]
    """Splits that every cell is scored on."""
    cells: tuple[Cell, ...]
    """The runs, seeds innermost."""


def read_grid(path: Path, changes: Sequence[str] = ()) -> Grid:
    """Read a grid file.

    Args:
        path: The file.
        changes: Further changes to every recipe, after all of the file's own.

    Raises:
        DataError: An unreadable file, an unknown key, recipe or field, a value of the wrong type, a cell that is there
            twice, two cells that are the same run, cells that differ in their data, or a further change that would take
            the place of what the file says of each method or seed; one line names file, key and value.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"{path}: cannot be read as TOML: {error}") from error
    _known(path, "", document, _KEYS)
    methods = _tables(path, document, "methods", {"recipe", "set", "label"})
    if not methods:
        raise DataError(f"{path}: has no [methods.NAME]")
    overrides = _tables(path, document, "overrides", {"set"})
    reference = _text(path, "reference", document.get("reference"))
    if reference not in methods:
        raise DataError(f"{path}: reference {reference!r} is none of the methods {', '.join(methods)}")
    fractions = _list(path, "fractions", document.get("fractions"), float)
    seeds = _list(path, "seeds", document.get("seeds"), int)
    draws = _draws(path, document, seeds)
    splits = _list(path, "splits", document.get("splits", ["val"]), str)
    _require_own_labels(path, methods)
    cells = tuple(
        _cell(
            path,
            document,
            changes,
            (method, methods[method]),
            (override, overrides.get(override, {})),
            [f"fraction={fraction!r}", f"seed={seed}", *draws[seed]],
        )
        for method in methods
        for override in overrides or ("",)
        for fraction in fractions
        for seed in seeds
    )
    _require_no_other_store(path, document, changes)
    _require_one_comparison(path, cells)
    return Grid(path=path, reference=reference, splits=tuple(splits), cells=cells)


def _cell(
    path: Path,
    document: Mapping[str, Any],
    further: Sequence[str],
    method: tuple[str, Mapping[str, Any]],
    override: tuple[str, Mapping[str, Any]],
    place: Sequence[str],
) -> Cell:
    where = f"methods.{method[0]}"
    recipe = _text(path, f"{where}.recipe", method[1].get("recipe", document.get("recipe")))
    if recipe not in RECIPES:
        raise DataError(f"{path}: {where}: {unknown_recipe(recipe, RECIPES)}")
    own = _changes(path, document, f"{where}.set", method[1].get("set", []))
    changes = [
        *_changes(path, document, "set", document.get("set", [])),
        *own,
        *_changes(path, document, f"overrides.{override[0]}.set", override[1].get("set", [])),
        *_changes(path, document, "--set", list(further)),
        *place,
    ]
    try:
        config = apply_overrides(RECIPES[recipe](), changes)
    except DataError as error:
        raise DataError(f"{path}: {where}: {error}") from error
    return Cell(
        method=method[0],
        override=override[0],
        label=_text(path, f"{where}.label", method[1].get("label", method[0])),
        fraction=config.fraction,
        seed=config.seed,
        recipe=recipe,
        changes=tuple(changes),
        own=tuple(own),
        config=config,
    )


def _draws(path: Path, document: Mapping[str, Any], seeds: Sequence[int]) -> dict[int, list[str]]:
    """By seed, the change that gives it a draw of its own; none where the grid says nothing of draws."""
    if "split_seeds" not in document:
        return {seed: [] for seed in seeds}
    draws = _list(path, "split_seeds", document["split_seeds"], int)
    if len(draws) != len(seeds):
        raise DataError(
            f"{path}: split_seeds {draws} are {len(draws)}, seeds {seeds} {len(seeds)}: one for each"
        )
    return {seed: [f"split_seed={draw}"] for seed, draw in zip(seeds, draws, strict=True)}


def _changes(path: Path, document: Mapping[str, Any], where: str, values: Any) -> list[str]:
    """Changes as `--set` takes them; what the grid lists for its cells is refused."""
    axes = {field: key for field, key in OWN_AXES.items() if key in document}
    found = _list(path, where, values, str, may_be_empty=True)
    for change in found:
        if (axis := axes.get(changed_field(change))) is not None:
            raise DataError(f"{path}: {where}: {change!r} belongs under {axis}")
    return found


def _require_own_labels(path: Path, methods: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse two methods that a table would call the same."""
    found: dict[Any, str] = {}
    for name, table in methods.items():
        label = table.get("label", name)
        if (same := found.setdefault(str(label), name)) != name:
            raise DataError(f"{path}: methods.{name}.label: {label!r} is what methods.{same} is called")


def _require_no_other_store(path: Path, document: Mapping[str, Any], changes: Sequence[str]) -> None:
    """Refuse one store from outside for methods that are compared by their stores."""
    given = [change for change in changes if changed_field(change) == "store"]
    for kind in ("methods", "overrides") if given else ():
        for name, table in document.get(kind, {}).items():
            if any(changed_field(str(change)) == "store" for change in table.get("set", [])):
                raise DataError(
                    f"{path}: --set: {given[-1]!r}: {kind}.{name} names a store of its own; change it in the file"
                )


def _require_one_comparison(path: Path, cells: tuple[Cell, ...]) -> None:
    names: set[str] = set()
    runs: dict[TrainConfig, str] = {}
    draws: dict[int, Cell] = {}
    if cells[0].config.image_ids_file and len({cell.fraction for cell in cells}) > 1:
        raise DataError(
            f"{path}: fractions: image_ids_file names the labelled images, so that every fraction would be the same "
            "run: give one, or a grid for each file"
        )
    for cell in cells:
        if cell.name in names:
            raise DataError(f"{path}: cell {cell.name} is there twice")
        names.add(cell.name)
        if (same := runs.setdefault(cell.config, cell.name)) != cell.name:
            raise DataError(f"{path}: cells {same} and {cell.name} are the same run under two names")
        for field in _SAME:
            one, other = getattr(cells[0].config, field), getattr(cell.config, field)
            if one != other:
                raise DataError(
                    f"{path}: cells {cells[0].name} and {cell.name} differ in {field} ({one} and {other}): "
                    "they could not be compared"
                )
        same_seed = draws.setdefault(cell.seed, cell)
        if same_seed.config.split_seed != cell.config.split_seed:
            raise DataError(
                f"{path}: cells {same_seed.name} and {cell.name} differ in split_seed ({same_seed.config.split_seed} "
                f"and {cell.config.split_seed}): they could not be compared"
            )


def _known(path: Path, where: str, table: Mapping[str, Any], keys: set[str]) -> None:
    for key in table:
        if key not in keys:
            raise DataError(f"{path}: {where}{key}: no such key (there are {', '.join(sorted(keys))})")


def _tables(
    path: Path, document: Mapping[str, Any], key: str, keys: set[str]
) -> dict[str, Mapping[str, Any]]:
    """The sub-tables of `key`, checked."""
    tables = document.get(key, {})
    if not isinstance(tables, dict):
        raise DataError(f"{path}: {key} is {tables!r}, not tables [{key}.NAME]")
    for name, table in tables.items():
        if not _NAME.fullmatch(name):
            raise DataError(f"{path}: {key}: {name!r} cannot be part of a folder name")
        if not isinstance(table, dict):
            raise DataError(f"{path}: {key}.{name} is {table!r}, not a table")
        _known(path, f"{key}.{name}.", table, keys)
    return tables


def _text(path: Path, key: str, value: Any) -> str:
    if value is None:
        raise DataError(f"{path}: {key} is missing")
    if not isinstance(value, str) or not value:
        raise DataError(f"{path}: {key} is {value!r}, not a name")
    return value


def _list(path: Path, key: str, values: Any, kind: type, *, may_be_empty: bool = False) -> list[Any]:
    """A list of one type without repetition; whole numbers pass for floats."""
    allowed = (int, float) if kind is float else (kind,)
    fine = isinstance(values, list) and all(
        isinstance(value, allowed) and not isinstance(value, bool) for value in values
    )
    if not fine or not (values or may_be_empty):
        raise DataError(f"{path}: {key} is {values!r}, not a list of {kind.__name__} values")
    found = [kind(value) for value in values]
    if len(set(found)) != len(found):
        raise DataError(f"{path}: {key} {values!r} holds a value twice")
    return found
