"""Pictures come from the data that are asked for, and what is missing is said once."""

import shutil

from shared.refer import load_refer
from stage2_train.report.data_source import DataSource, Faults


def test_pictures_of_other_annotations_are_not_shown(world):
    """Ids are numbers of lines: in a file that has changed they are of other pairs."""
    data = {"root": str(world.data), "dataset": "refshapes", "split_by": "unc"}
    known = next(iter(load_refer(world.data, "refshapes", "unc").samples())).sample_id
    assert DataSource(data, None, Faults()).sample(known) is not None
    faults = Faults()
    assert DataSource(data, "another", faults).sample(known) is None
    assert "has other annotations than" in faults.lines[0]


def test_of_many_missing_images_the_first_is_named_and_the_others_are_counted(world, tmp_path):
    root = shutil.copytree(world.data, tmp_path / "data")
    shutil.rmtree(root / "images")
    faults = Faults()
    source = DataSource({"root": str(root), "dataset": "refshapes", "split_by": "unc"}, None, faults)
    samples = {s.file_name: s for s in load_refer(root, "refshapes", "unc").samples()}
    for sample in (*samples.values(), *samples.values()):
        assert source.image(sample) is None
    (line,) = faults.lines
    assert next(iter(samples)) in line and line.endswith(f"({len(samples) - 1} more)")
