"""Published figures that stand beside ours: `assets/reference_results.csv`, overall IoU in percent, as printed."""

import csv
from dataclasses import dataclass
from importlib import resources

SOURCE = "arXiv 2605.28239v1, Table 1 (CC BY 4.0)"
"""Where every published figure comes from; shown with them."""

DATASET_NAMES = {
    ("refcoco", "unc"): "RefCOCO",
    ("refcoco+", "unc"): "RefCOCO+",
    ("refcocog", "umd"): "RefCOCOg-umd",
}
"""(dataset, split_by) of a run to the name used in the table."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """One printed figure."""

    method: str
    """Name of the method as printed."""
    split: str
    """Test split."""
    oiou: float
    """Overall IoU in [0, 1]; the source does not say at which resolution."""


def published(dataset: str, split_by: str, fraction: float | None) -> list[Published]:
    """The figures printed for one data set and share of labels, in the order of the source.

    Args:
        dataset: Folder name of the data set, for example `refcoco`.
        split_by: `unc`, `umd` or `google`.
        fraction: Share of labelled images in [0, 1].

    Returns:
        Possibly nothing: figures are never carried over to another data set or share of labels.
    """
    name = DATASET_NAMES.get((dataset, split_by))
    if name is None or fraction is None:
        return []
    text = resources.files("stage2_train.report").joinpath("assets/reference_results.csv").read_text("utf-8")
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return [
        Published(method=row["method"], split=row["split"], oiou=float(row["overall_iou"]) / 100)
        for row in rows
        if row["dataset"] == name and abs(float(row["labels_pct"]) / 100 - fraction) < 1e-6
    ]
