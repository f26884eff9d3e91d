"""Masks for the pairs of a JSONL file: a bad line costs itself alone, and a job that was stopped goes on.

    FOLDER/predictions.jsonl     one object a line of the file: a prediction, or what is wrong with the line
    FOLDER/<line>.<name>.*       the files of a prediction (`stage2_train.predict`)

A row is written after its files, so a kill costs the pass that was under way, and may tear the last row. The same
command run again keeps the row of a line if these are what they were: number, `id`, image name and expression of the
line; the bytes of the image file; the network's weights, settings and vocabulary (both by hash); and if its files are
there, an overlay where one is wanted. All other rows are dropped: torn ones, of lines that have changed, and errors, so
that what failed is tried again. Predictions by another network, or for lines that only another file has, are not lost:
a folder with such rows is refused. Not looked at: the version of the code, and what is in a mask's file.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from shared.errors import DataError
from shared.image_pack import ImageStore, digest_of
from shared.images import read_image
from shared.json_files import object_of_line
from shared.jsonl import read_pairs
from shared.jsonl_lines import ID, BadLine, Line
from shared.locks import locked
from shared.runlog import ProgressBar, say
from shared.store.publish import clean_partials, disk_errors, partial_path, publish_file
from stage2_train.predict import Prediction, Predictor, file_stem, files_of, write_prediction
from stage2_train.processes import require_single_process
from stage2_train.run_files import model_folder
from stage2_train.segmentor import CONFIG_NAME, WEIGHTS_NAME
from stage2_train.text import TOKENIZER_FILES, say_unread

PREDICTIONS = "predictions.jsonl"
"""Name of the file of rows."""

_MOST_SAID = 5
"""Lines that failed and are named on standard error."""


def predict_jsonl(
    model: str | Path,
    pairs: str | Path,
    out: str | Path,
    *,
    batch: int = 16,
    with_overlay: bool = True,
    quiet: bool = False,
) -> dict[str, Any]:
    """Segment the pairs of a JSONL file (`shared.jsonl`; labels in it are not looked at), or go on with it.

    Args:
        model: Run folder or model folder.
        pairs: The JSONL file; images are relative to its folder. A line may hold an `id`, which its row gets.
        out: Folder of the results, made if need be.
        batch: Pairs per pass.
        with_overlay: Whether overlays are written.
        quiet: No progress, and no word of lines that failed, on standard error.

    Returns:
        `num` lines, `num_kept` of them answered before, `num_failed` that have an error instead of a prediction,
        `num_empty` predictions without a pixel, and where the rows lie, in the order of the lines.

    Raises:
        DataError: An unusable model, a file that cannot be read or holds no line, or a folder that cannot be written
            to or holds predictions of another network or file, or several processes.
    """
    require_single_process("predict --jsonl")
    pairs, out = Path(pairs), Path(out)
    lines = read_pairs(pairs)
    network = hash_model(model_folder(Path(model)))
    job = _Job(
        out=out,
        source=str(pairs.resolve()),
        images=ImageStore(pairs.parent, ("",)),
        network=network,
        with_overlay=with_overlay,
    )
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
    with locked(out / ".predict.lock", 0.0):
        return _predicted(job, pairs, lines, Path(model), batch=batch, quiet=quiet)


def _predicted(
    job: "_Job", pairs: Path, lines: Sequence[Line | BadLine], model: Path, *, batch: int, quiet: bool
) -> dict[str, Any]:
    """The work of `predict_jsonl`, by the one process that may write the folder."""
    out = job.out
    path = out / PREDICTIONS
    with _writing(out):
        clean_partials(out)
        is_empty = _keep_answers(path, {line.number: line for line in lines if isinstance(line, Line)}, job)
    num_kept = len(is_empty)
    failed: list[dict[str, Any]] = []
    todo = [line for line in lines if line.number not in is_empty]
    order = [*is_empty, *(line.number for line in todo)]
    if todo:
        predictor = Predictor.from_pretrained(model)
        say_unread(predictor.tokenise, [line.expression for line in todo if isinstance(line, Line)])
        bar = ProgressBar(len(lines), "predict", "pair", initial=num_kept, quiet=quiet)
        with bar, _writing(out), path.open("ab") as file:
            for start in range(0, len(todo), batch):
                for row in job.answer(predictor, todo[start : start + batch]):
                    file.write(_encoded(row))
                    file.flush()
                    failed += [row] if "error" in row else []
                    is_empty[row["line"]] = row.get("area_px") == 0
                    bar.update()
    if order != sorted(order):
        rows: list[bytes] = path.read_bytes().splitlines(keepends=True)
        rows.sort(key=lambda row: json.loads(row)["line"])
        with _writing(out):
            publish_file(path, b"".join(rows))
    for row in failed[:_MOST_SAID]:
        say(f"{pairs}, line {row['line']}: {row['error']}", quiet)
    if len(failed) > _MOST_SAID:
        say(
            f"and {len(failed) - _MOST_SAID:,} more lines that failed: all have their `error` in {path}",
            quiet,
        )
    return {
        "num": len(lines),
        "num_kept": num_kept,
        "num_failed": len(failed),
        "num_empty": sum(is_empty.values()),
        "predictions": str(path),
    }


def _writing(out: Path) -> AbstractContextManager[None]:
    """Turns a full disk under the predictions into an error of one line."""
    return disk_errors(out, "the predictions", "those written are safe")


def hash_model(folder: Path) -> str:
    """32 hex digits of a hash over the files of a model's folder that a prediction depends on."""
    digest = hashlib.blake2b(digest_size=16)
    for name in (CONFIG_NAME, WEIGHTS_NAME, *TOKENIZER_FILES):
        path = folder / name
        if path.is_file():
            with path.open("rb") as file:
                content = hashlib.file_digest(file, hashlib.blake2b).hexdigest()
            digest.update(f"{name} {content}\n".encode())
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """A line with its image."""

    line: Line
    picture: Image.Image
    image_hash: str


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What the rows of a job have in common."""

    out: Path
    """Folder of the results."""
    source: str
    """Absolute path of the JSONL file."""
    images: ImageStore
    """Images by the names that lines give them."""
    network: str
    """`hash_model` of the network."""
    with_overlay: bool
    """Whether overlays are written."""

    def answer(self, predictor: Predictor, lines: Sequence[Line | BadLine]) -> Iterator[dict[str, Any]]:
        """The rows of some lines, in order, once their files are written; the sound ones take one pass."""
        opened = [self._open(line) for line in lines]
        ready = [one for one in opened if isinstance(one, _Opened)]
        found = iter(
            predictor([one.picture for one in ready], [one.line.expression for one in ready]) if ready else ()
        )
        for line, one in zip(lines, opened, strict=True):
            if isinstance(one, _Opened):
                yield self._write(one, next(found))
            else:
                yield _failed(line, one)

    def has_answered(self, row: Mapping[str, Any], line: Line) -> bool:
        """Whether a row is the answer to a line that would be given now, its files included."""
        wanted = {**_about(line), ID: line.own_id, "model_hash": self.network}
        if any(row.get(name) != value for name, value in wanted.items()) or not self._has_files(row):
            return False
        try:
            return row.get("image_hash") == digest_of(self.images.data(line.image)).hex()
        except DataError:
            return False

    def owner_of(self, row: Mapping[str, Any]) -> str:
        """Whose prediction a row is, in words; "" for this job's own, and for what is none."""
        if row.get("model_hash") not in (None, self.network):
            return "another network"
        return str(row["jsonl"]) if row.get("jsonl") not in (None, self.source) else ""

    def _has_files(self, row: Mapping[str, Any]) -> bool:
        files = row.get("files")
        kinds = ("mask", "overlay") if self.with_overlay else ("mask",)
        if not isinstance(files, dict) or not all(isinstance(files.get(kind), str) for kind in kinds):
            return False
        own = f"{files['mask'].removesuffix('.mask.png')}.json"
        return all(Path(file).is_file() for file in (own, *(files[kind] for kind in kinds)))

    def _open(self, line: Line | BadLine) -> _Opened | str:
        """A line with its image, or what is wrong with either."""
        if isinstance(line, BadLine):
            return line.fault
        try:
            data = self.images.data(line.image)
            picture = read_image(self.images.place(line.image), data)
        except DataError as error:
            return str(error)
        return _Opened(line=line, picture=picture, image_hash=digest_of(data).hex())

    def _write(self, one: _Opened, found: Prediction) -> dict[str, Any]:
        line = one.line
        name = f"{line.number:06d}.{file_stem(self.images.root / line.image, line.expression)}"
        record = {
            **_about(line),
            **found.record(line.image, line.expression),
            "jsonl": self.source,
            "image_hash": one.image_hash,
            "model_hash": self.network,
        }
        return write_prediction(files_of(self.out, name, self.with_overlay), one.picture, found, record)


def _about(line: Line | BadLine) -> dict[str, Any]:
    """What a row says of its line."""
    said: dict[str, Any] = {"line": line.number}
    if line.own_id is not None:
        said[ID] = line.own_id
    return said if isinstance(line, BadLine) else {**said, "image": line.image, "expression": line.expression}


def _failed(line: Line | BadLine, fault: str) -> dict[str, Any]:
    return {**_about(line), "error": " ".join(fault.split())}


def _keep_answers(path: Path, lines: Mapping[int, Line], job: _Job) -> dict[int, bool]:
    """Drop the rows of a file that answer no line of the job; of the others, by line, whether the mask is empty.

    Raises:
        DataError: A prediction would be lost that is not the job's; the file is as it was.
    """
    kept: dict[int, bool] = {}
    if not path.is_file():
        return kept
    fresh = partial_path(path)
    try:
        with path.open("rb") as old, fresh.open("xb") as new:
            for data in old:
                row = object_of_line(data)
                number = row.get("line")
                line = lines.get(number) if isinstance(number, int) else None
                if line is not None and line.number not in kept and job.has_answered(row, line):
                    new.write(data)
                    kept[line.number] = row.get("area_px") == 0
                elif owner := job.owner_of(row):
                    raise DataError(
                        f"{path}: holds predictions of {owner}; choose another folder (--out), or remove this file"
                    )
            new.flush()
            os.fsync(new.fileno())
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
    return kept


def _encoded(row: Mapping[str, Any]) -> bytes:
    return (json.dumps(row, ensure_ascii=False) + "\n").encode()
