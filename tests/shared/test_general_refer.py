"""gRefCOCO's form of the REFER layout: several targets are united, no target has an empty mask and its own rule."""

import json
import pickle

import numpy as np
import pytest

from shared.errors import DataError
from shared.metrics import SegmentationMeter
from shared.refer import load_refer
from shared.refer_check import check_refer
from tests.shared.refer_fixture import write_refer_fixture


def write_general(root, edit=None):
    """The fixture as gRefCOCO: ref 7 gets a second target, ref 9 none."""
    written = write_refer_fixture(root, dataset="grefcoco")
    refs = [{**ref, "ann_id": [ref["ann_id"]], "no_target": False} for ref in written.refs]
    by_id = {ref["ref_id"]: ref for ref in refs}
    by_id[7]["ann_id"] = [1007, 1002]
    by_id[9] |= {"ann_id": [-1], "no_target": True}
    if edit is not None:
        edit(by_id)
    folder = root / "grefcoco"
    (folder / "refs(unc).p").unlink()
    (folder / "grefs(unc).json").write_text(json.dumps(refs))
    return written


def test_several_targets_and_none(tmp_path):
    written = write_general(tmp_path)
    dataset = load_refer(*written.args)
    samples = {sample.ref_id: sample for sample in dataset.samples()}
    np.testing.assert_array_equal(dataset.mask(samples[7]), written.masks[1007] | written.masks[1002])
    assert samples[7].ann_id == -8 and samples[2].ann_id == 1002
    assert samples[9].no_target and dataset.has_mask(samples[9]) and not dataset.mask(samples[9]).any()
    assert dataset.box_xyxy_px(samples[9]).tolist() == [0, 0, 0, 0]
    assert [sample.ref_id for sample in samples.values() if sample.no_target] == [9]
    report = check_refer(*written.args)
    assert report.ok and report.no_target == {"train": 1}
    assert "note: train: 1 of 5 refs name nothing" in report.format_table()
    assert pickle.loads(pickle.dumps(dataset)).mask(samples[7]).any()


def test_a_union_with_a_box_that_has_no_mask_has_none(tmp_path):
    written = write_general(tmp_path)
    file = tmp_path / "grefcoco" / "instances.json"
    instances = json.loads(file.read_text())
    next(row for row in instances["annotations"] if row["id"] == 1002)["segmentation"] = []
    file.write_text(json.dumps(instances))
    dataset = load_refer(*written.args)
    assert [s.ref_id for s in dataset.samples() if not dataset.has_mask(s)] == [2, 2, 7, 7]


def test_unions_are_dropped_with_their_image(tmp_path):
    dataset = load_refer(*write_general(tmp_path).args)
    reader = dataset.without_masks([103])
    assert -8 in dataset._segmentations and -8 not in reader._segmentations


def test_empty_sentences_are_left_out_and_counted(tmp_path):
    written = write_general(tmp_path, lambda refs: refs[7]["sentences"][0].update(sent="", raw=""))
    assert len(load_refer(*written.args).samples()) == 17
    (problem,) = check_refer(*written.args).problems
    assert (problem.kind, problem.count, problem.blocks) == ("empty expression", 1, False)


@pytest.mark.parametrize(
    ("ann_id", "message"),
    [
        ([1007, 999], "ann_id 999 is not among the annotations"),
        ([1007, "x"], "ann_id 'x' is not among"),
        ([1007, 1003], "its annotation 1003 is of image 104"),
        (1007, "'ann_id' is 1007, not of type list"),
    ],
)
def test_broken_targets_are_named(tmp_path, ann_id, message):
    written = write_general(tmp_path, lambda refs: refs[7].update(ann_id=ann_id))
    with pytest.raises(DataError, match=rf"grefs\(unc\).json: refs\[0\].*{message}"):
        load_refer(*written.args)


def test_the_rule_for_no_target():
    meter = SegmentationMeter()
    meter.update("right", 0, 0, no_target=True)
    meter.update("wrong", 0, 10, no_target=True)
    meter.update("faulty annotation", 0, 0)
    meter.update("plain", 5, 10)
    result = meter.result()
    assert result["miou"] == (1 + 0 + 0 + 0.5) / 4 and result["oiou"] == 5 / 20
    assert (result["num_no_target"], result["no_target_acc"], result["pr@0.5"]) == (2, 0.5, 0.5)
