"""The REFER layout on disk: read both annotation files and name every row that does not hold together.

    ROOT/<dataset>/refs(<split_by>).p        pickle: list of {ref_id, ann_id, image_id, split, sentences}, where
                                             sentences are a list of {sent_id, sent, raw}
    ROOT/<dataset>/grefs(<split_by>).json    the same as JSON (gRefCOCO): ann_id is a list; [-1] names no target
    ROOT/<dataset>/instances.json            COCO: images, annotations (polygons or RLE; [] is no mask), categories

A ref of several annotations gets one of its own, their union, with the id -1 - ref_id; one without a target gets an
empty one.

`read_layout` stops only where nothing could be read; what is wrong with single rows is a `Problem`, which the loader
raises and the check counts, so that the two cannot disagree. Image files are not touched here.
"""

import gc
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shared.errors import DataError, short
from shared.images import unsafe_file_name
from shared.json_files import is_whole_text
from shared.layout import AnnotationRecord, ImageRecord, Layout, Problem, RefRecord, read_bytes
from shared.masks import Targets
from shared.safe_pickle import loads_plain

MAX_SIDE_PX = 65_535
"""Longest side of an image: the limit of the JPEG format."""

IMAGE_FOLDERS = (
    "images",
    "images/train2014",
    "images/mscoco/images/train2014",
    "images/saiapr_tc-12",
)
"""Where images are looked for below the root, in this order."""


def read_layout(root: str | Path, dataset: str, split_by: str) -> Layout:
    """Read and cross-check both annotation files.

    Raises:
        DataError: A file is missing or cannot be read as a whole; problems of single rows are returned instead.
    """
    folder = Path(root) / dataset
    refs_path, instances_path = folder / f"refs({split_by}).p", folder / "instances.json"
    general_path = folder / f"grefs({split_by}).json"
    if general_path.is_file() and not refs_path.is_file():
        refs_path = general_path
    refs_bytes = read_bytes(refs_path, _hint(folder, split_by))
    instances_bytes = read_bytes(instances_path)
    problems: list[Problem] = []
    with collector_paused():
        general = refs_path == general_path
        refs_rows = _parse_json(refs_bytes, refs_path) if general else loads_plain(refs_bytes, str(refs_path))
        if not isinstance(refs_rows, list):
            raise DataError(f"{refs_path}: expected a list of refs, found {type(refs_rows).__name__}")
        instances = _parse_instances(instances_bytes, instances_path)
        # Taken out, so that what was parsed is freed piece by piece.
        images = _read_images(instances.pop("images"), str(instances_path), problems)
        annotations = _read_annotations(instances.pop("annotations"), images, str(instances_path), problems)
        refs = _Refs(str(refs_path), images, annotations, problems, general).read(refs_rows)
    digest = hashlib.blake2b(digest_size=16)
    for data in (refs_bytes, instances_bytes):
        digest.update(len(data).to_bytes(8, "little") + data)
    return Layout(
        root=Path(root),
        dataset=dataset,
        split_by=split_by,
        instances_path=instances_path,
        refs_path=refs_path,
        image_folders=IMAGE_FOLDERS,
        images=images,
        annotations=annotations,
        refs=sorted(refs, key=lambda ref: ref.ref_id),
        problems=problems,
        fingerprint=digest.hexdigest(),
    )


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the cyclic collector: it walks the millions of new containers again and again and finds no cycle."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _parse_json(data: bytes, path: Path) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}") from error


def _parse_instances(data: bytes, path: Path) -> dict[str, Any]:
    instances = _parse_json(data, path)
    for key in ("images", "annotations"):
        if not isinstance(instances, dict) or not isinstance(instances.get(key), list):
            raise DataError(f"{path}: has no list {key!r}")
    return instances


def _hint(folder: Path, split_by: str) -> str:
    names = [*folder.glob("refs(*).p"), *folder.glob("grefs(*).json")]
    found = sorted(path.name.partition("(")[2].rpartition(")")[0] for path in names)
    if found:
        return f"; split_by {split_by!r} is not among {', '.join(found)}"
    drawn = "; `l2l data synth` draws it" if folder.name.startswith("refshapes") else ""
    if folder.is_dir():
        return drawn
    own = sorted(folder.parent.glob("*.jsonl"))
    meant = f"; is data.root={own[0]} meant?" if own else ""
    return f"; there is no folder {folder}{meant}{drawn}"


def _fault(record: Any, fields: Mapping[str, type]) -> str | None:
    """What is wrong with a record's fields, or None."""
    if not isinstance(record, dict):
        return f"expected an object, found {type(record).__name__}"
    for name, kind in fields.items():
        if name not in record:
            return f"has no {name!r}"
        value = record[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            return f"{name!r} is {short(value)}, not of type {kind.__name__}"
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            return f"{name!r} is {short(value)}, which takes more than 64 bits"
    return None


def _read_images(rows: list[Any], file: str, problems: list[Problem]) -> dict[int, ImageRecord]:
    images: dict[int, ImageRecord] = {}
    for index, row in enumerate(rows):
        fault = _fault(row, {"id": int, "file_name": str, "height": int, "width": int})
        where = f"images[{index}]"
        if fault:
            problems.append(Problem(kind="malformed record", file=file, row=where, detail=fault))
            continue
        where += f" (id {row['id']})"
        record = ImageRecord(
            image_id=row["id"], file_name=row["file_name"], height=row["height"], width=row["width"]
        )
        if not (1 <= record.height <= MAX_SIDE_PX and 1 <= record.width <= MAX_SIDE_PX):
            size = f"height {record.height} and width {record.width} are not within 1..{MAX_SIDE_PX}"
            problems.append(Problem(kind="impossible image size", file=file, row=where, detail=size))
        elif fault := unsafe_file_name(record.file_name):
            detail = f"file_name {short(record.file_name)} {fault}"
            problems.append(Problem(kind="unsafe file name", file=file, row=where, detail=detail))
        elif images.setdefault(record.image_id, record) != record:
            detail = f"image id {record.image_id} stands for another image already"
            problems.append(Problem(kind="duplicate image id", file=file, row=where, detail=detail))
    return images


def _read_annotations(
    rows: list[Any], images: dict[int, ImageRecord], file: str, problems: list[Problem]
) -> dict[int, AnnotationRecord]:
    annotations: dict[int, AnnotationRecord] = {}
    for index, row in enumerate(rows):
        fault = _fault(row, {"id": int, "image_id": int, "segmentation": object})
        where = f"annotations[{index}]"
        if fault:
            problems.append(Problem(kind="malformed record", file=file, row=where, detail=fault))
            continue
        where += f" (id {row['id']})"
        drawn = row["segmentation"]
        record = AnnotationRecord(
            ann_id=row["id"],
            image_id=row["image_id"],
            segmentation=None if drawn == [] else drawn,  # what COCO tools write of a box without a mask
        )
        if annotations.setdefault(record.ann_id, record) != record:
            detail = f"annotation id {record.ann_id} stands for another annotation already"
            problems.append(Problem(kind="duplicate annotation id", file=file, row=where, detail=detail))
        elif record.image_id not in images:  # blocks only once a ref needs it
            problem = Problem(
                kind="annotation of unknown image",
                file=file,
                row=where,
                detail=f"image_id {record.image_id} is not among the images",
                blocks=False,
            )
            problems.append(problem)
    return annotations


class _Refs:
    """Reads the refs: each row against the images, the annotations and the rows before it."""

    def __init__(
        self,
        file: str,
        images: dict[int, ImageRecord],
        annotations: dict[int, AnnotationRecord],
        problems: list[Problem],
        general: bool,
    ) -> None:
        self.general = general  # several targets or none (gRefCOCO)
        self.file = file
        self.images = images
        self.annotations = annotations
        self.problems = problems
        self.row_of_ref: dict[int, str] = {}
        self.row_of_sentence: dict[int, str] = {}

    def read(self, rows: list[Any]) -> list[RefRecord]:
        """The sound refs in file order."""
        refs = (self._ref(row, f"refs[{index}]") for index, row in enumerate(rows))
        return [ref for ref in refs if ref is not None]

    def _report(self, kind: str, row: str, detail: str, blocks: bool = True) -> None:
        self.problems.append(Problem(kind=kind, file=self.file, row=row, detail=detail, blocks=blocks))

    def _ref(self, row: Any, where: str) -> RefRecord | None:
        fields: dict[str, type] = {
            "ref_id": int,
            "ann_id": int,
            "image_id": int,
            "split": str,
            "sentences": list,
        }
        if self.general:
            fields["ann_id"] = list
        fault = _fault(row, fields)
        if fault:
            self._report("malformed record", where, fault)
            return None
        ref_id, image_id = row["ref_id"], row["image_id"]
        where += f" (ref_id {ref_id})"
        if ref_id in self.row_of_ref:
            self._report(
                "duplicate ref id", where, f"ref_id {ref_id} stands at {self.row_of_ref[ref_id]} already"
            )
            return None
        self.row_of_ref[ref_id] = where
        sentences = self._sentences(row["sentences"], where)
        ann_ids = row["ann_id"] if self.general else [row["ann_id"]]
        no_target = self.general and (row.get("no_target") is True or ann_ids in ([], [-1]))
        ann_ids = [] if no_target else ann_ids
        if image_id not in self.images:
            self._report("ref of unknown image", where, f"image_id {image_id} is not among the images")
            return None
        if not all(self._belongs(ann_id, image_id, where) for ann_id in ann_ids):
            return None
        return RefRecord(
            ref_id=ref_id,
            ann_id=ann_ids[0] if len(ann_ids) == 1 else self._union(ref_id, image_id, ann_ids),
            image_id=image_id,
            split=row["split"],
            sentences=sentences,
            no_target=no_target,
        )

    def _belongs(self, ann_id: Any, image_id: int, where: str) -> bool:
        """Whether an annotation is there and of this image; reports it otherwise."""
        annotation = self.annotations.get(ann_id) if isinstance(ann_id, int) else None
        if annotation is None:
            detail = f"ann_id {short(ann_id)} is not among the annotations"
            self._report("ref of unknown annotation", where, detail)
        elif annotation.image_id != image_id:
            detail = f"image_id {image_id}, but its annotation {ann_id} is of image {annotation.image_id}"
            self._report("ref and annotation disagree", where, detail)
        else:
            return True
        return False

    def _union(self, ref_id: int, image_id: int, ann_ids: list[int]) -> int:
        """Id of a new annotation, the union of several or of none; of no mask if one of them has none."""
        parts = tuple(self.annotations[ann_id].segmentation for ann_id in ann_ids)
        ann_id = -1 - ref_id
        self.annotations[ann_id] = AnnotationRecord(
            ann_id=ann_id,
            image_id=image_id,
            segmentation=None if None in parts else Targets(parts=parts),
        )
        return ann_id

    def _sentences(self, rows: list[Any], ref_where: str) -> tuple[tuple[int, str], ...]:
        if not rows:
            self._report("ref without sentences", ref_where, "has no sentences", blocks=False)
        sentences = []
        for index, row in enumerate(rows):
            where = f"{ref_where} sentences[{index}]"
            fault = _fault(row, {"sent_id": int}) or _text_fault(row)
            if fault:
                self._report("malformed record", where, fault)
                continue
            sent_id, expression = row["sent_id"], expression_of(row)
            if not expression:
                # gRefCOCO has some; they are left out and counted, as its authors advise.
                detail = f"sent_id {sent_id} has the expression {expression!r}"
                self._report("empty expression", where, detail, blocks=not self.general)
            elif sent_id in self.row_of_sentence:
                detail = f"sent_id {sent_id} stands at {self.row_of_sentence[sent_id]} already"
                self._report("duplicate sentence id", where, detail)
            else:
                self.row_of_sentence[sent_id] = where
                sentences.append((sent_id, expression))
        return tuple(sentences)


def expression_of(sentence: dict[str, Any]) -> str:
    """The normalised text (`sent`), or the typed one (`raw`) where that is blank or absent; outer blanks stripped."""
    return str(sentence.get("sent") or "").strip() or str(sentence.get("raw") or "").strip()


def _text_fault(sentence: dict[str, Any]) -> str | None:
    if "sent" not in sentence and "raw" not in sentence:
        return "has neither 'sent' nor 'raw'"
    for name in ("sent", "raw"):
        if not isinstance(sentence.get(name, ""), str):
            return f"{name!r} is {short(sentence[name])}, not of type str"
        if not is_whole_text(sentence.get(name, "")):
            return f"{name!r} is {short(sentence[name])}, which holds half a character"
    return None
