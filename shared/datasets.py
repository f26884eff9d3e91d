"""Opens, reads or checks the data set that a `DataConfig` names, whatever files it consists of."""

from collections.abc import Sequence
from pathlib import Path

from shared.config import DataConfig
from shared.jsonl import load_jsonl, read_jsonl, read_lines
from shared.layout import Layout
from shared.refer import ReferDataset, load_refer
from shared.refer_layout import read_layout


def load_dataset(config: DataConfig) -> ReferDataset:
    """The data set, ready to be read.

    Raises:
        DataError: It cannot be read, or a row of it cannot be used; the first is named.
    """
    if config.is_jsonl:
        return load_jsonl(config.root)
    return load_refer(config.root, config.dataset, config.split_by)


def dataset_layout(config: DataConfig) -> Layout:
    """Its annotations with everything that is wrong in them.

    Raises:
        DataError: It cannot be read at all.
    """
    if config.is_jsonl:
        return read_jsonl(config.root)
    return read_layout(config.root, config.dataset, config.split_by)


def image_names(config: DataConfig) -> tuple[Path, list[str], Sequence[str]]:
    """The folder of its images, their names, and the folders below it to look in; no image is opened, nor a pack.

    Raises:
        DataError: It cannot be read, or a line of a JSONL file cannot be used.
    """
    if config.is_jsonl:
        return Path(config.root).parent, [line.image for line in read_lines(config.root)], ("",)
    layout = read_layout(config.root, config.dataset, config.split_by)
    return layout.root, [layout.images[ref.image_id].file_name for ref in layout.refs], layout.image_folders
