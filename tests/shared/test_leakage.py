"""Leakage by image id: between splits of one data set, of several, and against an id list."""

import pytest

from shared.errors import DataError
from shared.leakage import leakage, leakage_records, leakage_table
from tests.shared.refer_fixture import set_field, write_refer_fixture


@pytest.fixture
def root(tmp_path):
    """refcoco as the fixture has it; refcoco+ trains on its val image and scores one of its train images."""

    def swap(refs, instances):
        for ref in refs:
            ref["split"] = {104: "train", 102: "val"}.get(ref["image_id"], ref["split"])

    write_refer_fixture(tmp_path, dataset="refcoco")
    write_refer_fixture(tmp_path, dataset="refcoco+", edit=swap)
    return tmp_path


def shared(overlaps):
    return {(o.trained, o.scored): (o.shared, o.images) for o in overlaps if o.shared}


def test_a_data_set_split_by_image_leaks_nothing(root):
    overlaps = leakage(root, ["refcoco:unc"])
    assert shared(overlaps) == {} and len(overlaps) == 3
    assert leakage_table(overlaps) == "3 of 3 pairs share no image"
    assert leakage_records(overlaps)["ok"] is True


def test_across_data_sets(root):
    overlaps = leakage(root, ["refcoco:unc", "refcoco+:unc"])
    assert shared(overlaps) == {
        ("refcoco(unc) train", "refcoco+(unc) val"): (1, 1),
        ("refcoco+(unc) train", "refcoco(unc) val"): (1, 1),
    }
    table = leakage_table(overlaps)
    assert "refcoco(unc) train   refcoco+(unc) val       1       1   100.0%" in table
    assert table.endswith("10 of 12 pairs share no image")
    assert leakage_records(overlaps)["ok"] is False and leakage_records(overlaps)["pairs"][0]["shared"] == 0


def test_split_by_object(tmp_path):
    write_refer_fixture(tmp_path, dataset="refcocog", split_by="google", edit=set_field(0, 1, "split", "val"))
    assert shared(leakage(tmp_path, ["refcocog:google"])) == {
        ("refcocog(google) train", "refcocog(google) val"): (1, 2)
    }


def test_against_an_id_list(root, tmp_path):
    ids = tmp_path / "pretraining.txt"
    ids.write_text("105\n104\n999\n")
    overlaps = leakage(root, ["refcoco:unc"], [ids])
    assert shared(overlaps) == {
        (str(ids), "refcoco(unc) val"): (1, 1),
        (str(ids), "refcoco(unc) testA"): (1, 1),
    }


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["refcoco"], "'refcoco' is not of the form"),
        (["refclef:unc"], "images are not COCO's"),
        (["absent:unc"], "not found"),
        ([], "nothing to compare"),
    ],
)
def test_refusals(root, names, message):
    with pytest.raises(DataError, match=message):
        leakage(root, names)


def test_rows_that_do_not_hold_together_are_no_leakage_left_out(root):
    """A ref that could not be read would be missing from both sides."""
    write_refer_fixture(root, dataset="refcoco", edit=set_field(0, 6, "ann_id", 4242))
    with pytest.raises(DataError, match=r"refs\[6\] .*ann_id 4242 is not among the annotations"):
        leakage(root, ["refcoco:unc"])
