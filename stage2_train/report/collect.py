"""Read what runs left on disk: configuration, curves, scores, sentences. Missing parts are named, never invented.

The layout read here is the run directory: `config.json` (required), `split.json`, `metrics.jsonl`,
`eval/<split>.json`, `eval/<split>.jsonl` and `done.json` (each optional).
"""

from pathlib import Path
from typing import Any

from shared.errors import DataError
from shared.grid_folders import CELL, method_of
from stage2_train.report.lenient_json import read_json, read_jsonl
from stage2_train.report.run_data import EvalData, RunData, in_report_order


def collect_runs(paths: list[Path]) -> list[RunData]:
    """Read each run directory, in the order given.

    Raises:
        DataError: No path, a path that is no directory, or one without a readable `config.json`.
    """
    if not paths:
        raise DataError("report: no run directory was given")
    names = _labels(paths)
    return [_collect_run(path, name) for path, name in zip(paths, names, strict=True)]


def _collect_run(path: Path, name: str) -> RunData:
    if not path.is_dir():
        raise DataError(f"{path}: no such run directory")
    if not (path / "config.json").is_file():
        raise DataError(f"{path}: not a run directory (it has no config.json)")
    missing: list[str] = []
    config = read_json(path / "config.json", missing)
    if not config:
        raise DataError(f"{path / 'config.json'}: {missing[0] if missing else 'holds no settings'}")
    evals = {}
    for file in sorted((path / "eval").glob("*.json")):
        summary = read_json(file, missing)
        if summary:
            sentences = file.with_suffix(".jsonl")
            rows = _once_each(read_jsonl(sentences, missing), file, missing)
            evals[file.stem] = EvalData.of(file.stem, summary, rows, sentences)
    done = read_json(path / "done.json", missing) if (path / "done.json").is_file() else {}
    grid, called = method_of(path) or ("", "")
    return RunData(
        path=path,
        grid=grid,
        called=called,
        name=name,
        config=config,
        split=read_json(path / "split.json", missing),
        metrics=read_jsonl(path / "metrics.jsonl", missing),
        evals={split: evals[split] for split in in_report_order(list(evals))},
        done=done,
        missing=missing,
    )


def _labels(paths: list[Path]) -> list[str]:
    """Folder names (of a grid's run with method and share of labels), made unique by folders above or by a number."""
    parts = [path.resolve().parts for path in paths]
    names = ["/".join(own[-3:] if CELL.fullmatch("/".join(own[-2:])) else own[-1:]) for own in parts]
    for depth in range(2, max(map(len, parts), default=0) + 1):
        if len(set(names)) == len(names):
            break
        names = [
            "/".join(own[-depth:]) if names.count(name) > 1 else name
            for own, name in zip(parts, names, strict=True)
        ]
    return [f"{n} ({i + 1})" if names.count(n) > 1 else n for i, n in enumerate(names)]


def _once_each(rows: list[dict[str, Any]], file: Path, missing: list[str]) -> list[dict[str, Any]]:
    """One row per sample id; a doubled one is dropped and named."""
    unique = {str(row.get("sample_id")): row for row in rows}
    if len(unique) != len(rows):
        missing.append(
            f"eval/{file.stem}.jsonl: {len(rows) - len(unique)} sentence(s) appear twice; counted once"
        )
    return list(unique.values())
