"""The commands `l2l data`: make, check and split data."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.console import Json, only_answers_on_stdout, show, text_of_mapping
from shared.errors import DataError

if TYPE_CHECKING:
    from shared.config import DataConfig

Root = Annotated[
    Path, typer.Argument(metavar="ROOT", help="Folder that holds images/ and <dataset>/, or a .jsonl file.")
]
Dataset = Annotated[str, typer.Option("--dataset", help="Sub-folder of a folder ROOT, for example refcoco.")]
SplitBy = Annotated[str, typer.Option("--split-by", help="unc, umd or google; for a folder ROOT.")]

_SAFE = "nothing was lost"


def data_synth(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Root folder to write below.")],
    flavour: Annotated[str, typer.Option(help="refshapes, refshapes+ or refshapesg.")] = "refshapes",
    images: Annotated[int, typer.Option(help="Images of the train split.")] = 2000,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    as_json: Json = False,
) -> None:
    """Draw the embedded data set."""
    from shared.store.publish import disk_errors
    from shared.synth.refshapes import write_refshapes

    with only_answers_on_stdout(), disk_errors(out, "the drawn data set", _SAFE):
        summary = write_refshapes(out, flavour, images, seed, progress=not as_json)
    show(summary, as_json, _text_of_synth)


def data_init(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    images: Annotated[int, typer.Option(help="Training images to draw; a tenth get masks, at least 3.")] = 8,
    as_json: Json = False,
) -> None:
    """Write an example of your own data: a commented JSONL file and drawn images."""
    from shared.store.publish import disk_errors
    from shared.synth.example import write_example

    with disk_errors(out, "the example", _SAFE):
        answer = write_example(out, images)
    show(answer, as_json, text_of_mapping)


def data_import(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A .parquet file, or a folder of them.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The .jsonl file to make; images go beside it.")],
    column: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="NAME=COLUMN", help="A column of another name; may be repeated."),
    ] = None,
    corners: Annotated[
        bool, typer.Option("--corners", help="Boxes are x0, y0, x1, y1 instead of x, y, width, height.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Turn a Parquet export of Hugging Face `datasets` into your own data: a JSONL file and images."""
    from shared.parquet import import_parquet
    from shared.store.publish import disk_errors

    columns = {}
    for one in column or []:
        name, separator, value = one.partition("=")
        if not separator or not value:
            raise DataError(f"--column is {one!r}, expected NAME=COLUMN")
        columns[name] = value
    with only_answers_on_stdout(), disk_errors(out.parent, "images and pairs", _SAFE):
        answer = import_parquet(source, out, columns=columns, corners=corners, quiet=as_json)
    show(answer, as_json, text_of_mapping)


def data_check(root: Root, dataset: Dataset = "", split_by: SplitBy = "", as_json: Json = False) -> None:
    """Look for every fault in a data set; exit status 1 if there is one."""
    from shared.datasets import dataset_layout
    from shared.refer_check import check_layout

    with only_answers_on_stdout():
        layout = dataset_layout(_data_config(root, dataset, split_by))
        report = check_layout(layout, progress=not as_json)
    show(report.to_dict(), as_json, lambda _: report.format_table())
    if not report.ok:
        raise typer.Exit(1)


def data_pack(root: Root, dataset: Dataset = "", split_by: SplitBy = "", as_json: Json = False) -> None:
    """Put the images of a data set into one file, ROOT/images.h5; run it again to go on, or to add a data set's."""
    from shared.datasets import image_names
    from shared.image_pack_build import build_pack

    folder, names, folders = image_names(_data_config(root, dataset, split_by))
    answer = build_pack(folder, names, folders, quiet=as_json)
    show(answer, as_json, text_of_mapping)


def data_leakage(
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="Folder that holds <dataset>/ folders.")],
    dataset: Annotated[
        list[str], typer.Option("--dataset", metavar="D:S", help="For example refcoco:unc; may be repeated.")
    ],
    ids: Annotated[
        list[Path] | None, typer.Option("--ids", metavar="FILE", help="Image ids of other training data.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Count COCO images that train splits share with scored splits; exit status 1 if there are any."""
    from shared.leakage import leakage, leakage_records, leakage_table

    overlaps = leakage(root, dataset, ids or [])
    records = leakage_records(overlaps)
    show(records, as_json, lambda _: leakage_table(overlaps))
    if not records["ok"]:
        raise typer.Exit(1)


def data_split(
    root: Root,
    dataset: Dataset = "",
    split_by: SplitBy = "",
    *,
    fraction: Annotated[float, typer.Option(help="Labelled share of the train images, in (0, 1].")],
    split_seed: Annotated[
        int, typer.Option(help="Seed of the draw, `split_seed` of a training; not the seed of a run.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Print which train images are labelled, in order of the draw, and what they carry."""
    from shared.datasets import load_dataset
    from shared.splits import labelled_image_ids, split_hash

    config = _data_config(root, dataset, split_by)
    loaded = load_dataset(config)
    ids, names = labelled_image_ids(loaded.drawn_image_ids(), fraction, split_seed), loaded.image_names()
    labelled = set(ids)
    train = loaded.samples("train")
    samples = [sample for sample in train if sample.image_id in labelled and loaded.has_mask(sample)]
    split = {
        "dataset": config.dataset,
        "split_by": config.split_by,
        "fraction": fraction,
        "seed": split_seed,
        "hash": split_hash(ids),
        "num_images": len(ids),
        "num_refs": len({sample.ref_id for sample in samples}),
        "num_sentences": len(samples),
        "image_ids": ids,
        "file_names": [names[image_id] for image_id in ids],
    }
    show(split, as_json, lambda made: _text_of_split(made, by_name=config.is_jsonl))


def _data_config(root: Path, dataset: str, split_by: str) -> "DataConfig":
    """Where a data set lies; a JSONL file needs neither name.

    Raises:
        DataError: A folder without both names.
    """
    from shared.config import DataConfig

    if not root.exists():
        raise DataError(f"{root}: no such file or folder")
    if root.suffix != ".jsonl" and not (dataset and split_by):
        own = [path for path in root.glob("*.jsonl") if path.is_file()] if root.is_dir() else []
        hint = f"; or is {own[0]} meant?" if own else ""
        raise DataError(f"{root}: a folder needs --dataset and --split-by{hint}")
    return DataConfig(root=str(root), dataset=dataset, split_by=split_by)


def _text_of_synth(summary: Mapping[str, Any]) -> str:
    lines = [f"{summary['root']}: {summary['dataset']} ({summary['split_by']}), seed {summary['seed']}"]
    for name, counts in summary["splits"].items():
        lines.append(f"  {name:<6} " + ", ".join(f"{number} {what}" for what, number in counts.items()))
    return "\n".join([*lines, f"sha256 {summary['sha256']}"])


def _text_of_split(split: Mapping[str, Any], by_name: bool) -> str:
    """Counts, then an image a line: by its file name where ids are numbers of lines, which move."""
    counts = f"{split['num_images']} images, {split['num_refs']} refs, {split['num_sentences']} sentences"
    listed = split["file_names" if by_name else "image_ids"]
    return f"{counts}; hash {split['hash']}\n" + "\n".join(map(str, listed))
