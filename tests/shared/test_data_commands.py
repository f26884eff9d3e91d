"""`l2l data`: data sets are made, imported, checked, packed and split."""

from pathlib import Path

import pytest


def test_synth_then_check_then_split(l2l, tmp_path):
    made = l2l("data", "synth", tmp_path, "--images", "10", "--json")
    assert made.status == 0 and made.json["splits"]["train"]["images"] == 10
    again = l2l("data", "synth", tmp_path, "--images", "10")
    assert again.status == 2 and again.err.startswith("error: ")
    where = (tmp_path, "--dataset", "refshapes", "--split-by", made.json["split_by"])
    checked = l2l("data", "check", *where, "--json")
    assert checked.status == 0 and checked.json["ok"] is True
    table = l2l("data", "check", *where)
    assert table.status == 0 and "train" in table.out


def test_a_faulty_data_set_is_status_1(l2l, tmp_path):
    made = l2l("data", "synth", tmp_path, "--images", "4", "--json").json
    next(path for path in (tmp_path / "images").rglob("*") if path.is_file()).write_bytes(b"torn")
    checked = l2l(
        "data", "check", tmp_path, "--dataset", "refshapes", "--split-by", made["split_by"], "--json"
    )
    assert checked.status == 1 and checked.json["ok"] is False


def test_split_prints_the_published_draw(l2l, refshapes):
    import random

    from shared.refer import load_refer

    data = (refshapes, "--dataset", "refshapes", "--split-by", "unc")
    where = (*data, "--fraction", "0.25", "--split-seed", "5")
    split = l2l("data", "split", *where, "--json").json
    loaded = load_refer(refshapes, "refshapes", "unc")
    assert split["image_ids"] == random.Random(5).sample(loaded.train_image_ids(), 3)
    labelled = [sample for sample in loaded.samples("train") if sample.image_id in split["image_ids"]]
    assert set(split["file_names"]) == {sample.file_name for sample in labelled}
    assert split["num_sentences"] == len(labelled) and split["num_images"] == 3
    text = l2l("data", "split", *where).out.splitlines()
    assert [int(line) for line in text[1:]] == split["image_ids"]


def test_a_fraction_of_no_image_is_refused(l2l, refshapes):
    ran = l2l("data", "split", refshapes, "--dataset", "refshapes", "--split-by", "unc", "--fraction", "0.01")
    assert ran.status == 2 and "0.01" in ran.err


def test_own_data_goes_the_same_way_as_refer_data(l2l, tmp_path):
    path = l2l("data", "init", tmp_path / "mine", "--json").json["path"]
    assert l2l("data", "check", path, "--json").json["unlabelled"] == {"train": 5}
    split = l2l("data", "split", path, "--fraction", "1", "--json").json
    assert (split["dataset"], split["num_images"]) == ("photos", 3)
    printed = l2l("data", "split", path, "--fraction", "1").out.splitlines()
    assert printed[1:] == split["file_names"] and split["file_names"][0].startswith("images/")
    plan = l2l(
        "priors",
        "run",
        "embedded",
        "--set",
        f"data.root={path}",
        "--set",
        "splits=train,val",
        "--dry-run",
        "--json",
    ).json
    assert plan["splits"] == {"train": 8, "val": 3} and plan["problem"] is None
    sets = ("--set", f"data.root={path}", "--set", "fraction=1")
    plan = l2l("train", "fixmatch-embedded", *sets, "--out", tmp_path / "run", "--dry-run", "--json").json
    assert plan["labelled"]["num_unlabelled_refs"] == 5 and plan["config"]["data"]["dataset"] == "photos"
    ran = l2l("data", "check", tmp_path / "mine")
    assert ran.status == 2 and "a folder needs --dataset and --split-by" in ran.err


def test_leakage_is_status_1(l2l, refshapes, tmp_path):
    assert l2l("data", "leakage", refshapes, "--dataset", "refshapes:unc").status == 0
    (tmp_path / "ids.txt").write_text("".join(f"{number}\n" for number in range(1, 100)))
    ran = l2l(
        "data", "leakage", refshapes, "--dataset", "refshapes:unc", "--ids", tmp_path / "ids.txt", "--json"
    )
    assert ran.status == 1 and ran.json["ok"] is False


@pytest.mark.parametrize("place", ["taken", "taken/below"])
def test_data_are_not_made_where_a_file_is(l2l, tmp_path, place):
    (tmp_path / "taken").write_text("mine")
    for command in ("init", "synth"):
        ran = l2l("data", command, tmp_path / place)
        assert ran.status == 2 and "cannot write" in ran.err and "a file is in the way" in ran.err
    assert (tmp_path / "taken").read_text() == "mine"


def test_parquet_that_cannot_be_imported_is_status_2(l2l, tmp_path):
    out = tmp_path / "own.jsonl"
    ran = l2l("data", "import", tmp_path, out)
    assert ran.status == 2 and "no .parquet file there" in ran.err and ran.err.count("\n") == 1
    ran = l2l("data", "import", tmp_path, out, "--column", "sentence")
    assert ran.status == 2 and "--column is 'sentence', expected NAME=COLUMN" in ran.err
    assert not out.exists()


def test_pack_then_check_without_loose_files(l2l, tmp_path):
    import shutil

    path = l2l("data", "init", tmp_path / "mine", "--json").json["path"]
    assert l2l("data", "pack", path, "--json").json["added"] == 11
    pack = Path(path).parent / "images.h5"
    pack.write_bytes(pack.read_bytes()[:-1])  # not even its list can be read: it is built anew
    assert l2l("data", "pack", path, "--json").json["added"] == 11
    shutil.rmtree(tmp_path / "mine" / "images")
    assert l2l("data", "check", path).status == 0
    assert "added: 0" in l2l("data", "pack", path).out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image": "gone.jpg", "expression": "x"}', "line 1: image 'gone.jpg'"),
        ('{"image": "../a.jpg", "expression": "x"}', "leads out of the image folder"),
        ('{"image": "bomb.png", "expression": "x"}', "bomb.png: image cannot be read"),
        ('{"image": 3, "expression": "x"}', "line 1: 'image' is 3"),
        ("[" * 100_000, "line 1: not JSON"),
        ("\x00\xff", "line 1: not JSON"),
    ],
)
def test_hostile_lines_are_one_line_of_error(l2l, tmp_path, line, message):
    from tests.shared.test_images import png_of

    (tmp_path / "bomb.png").write_bytes(png_of(50_000, 50_000))
    (tmp_path / "own.jsonl").write_text(line + "\n", encoding="latin-1")
    ran = l2l("data", "split", tmp_path / "own.jsonl", "--fraction", "1")
    assert ran.status == 2 and ran.out == "" and ran.err.count("\n") == 1, ran.err
    assert message in ran.err and ran.err.startswith(f"error: {tmp_path}")
    checked = l2l("data", "check", tmp_path / "own.jsonl")
    assert checked.status == 1 and message.partition(": ")[0] in checked.out


def test_a_folder_of_own_data_is_pointed_to_its_file(l2l, tmp_path):
    l2l("data", "init", tmp_path / "photos")
    asked = l2l("data", "check", tmp_path / "photos")
    assert asked.status == 2 and f"or is {tmp_path}/photos/photos.jsonl meant?" in asked.err
