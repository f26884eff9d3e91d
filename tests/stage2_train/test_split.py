import json
from pathlib import Path

import pytest
from PIL import Image

from shared.errors import DataError
from shared.jsonl import load_jsonl
from shared.refer import load_refer
from stage2_train.order import group_by_ref
from stage2_train.split import make_split


def test_split_is_by_image(mini_root: Path) -> None:
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    split = make_split(dataset, 0.25, 0)
    own, other = ({s.image_id for ref in refs for s in ref} for refs in (split.labelled, split.unlabelled))
    assert own == set(split.image_ids) and not own & other
    assert own | other == set(dataset.train_image_ids()) and len(own) == 4
    summary = split.summary()
    assert summary["num_refs"] + summary["num_unlabelled_refs"] == len(group_by_ref(dataset.samples("train")))
    assert summary["num_sentences"] + summary["num_unlabelled_sentences"] == len(dataset.samples("train"))


def test_split_from_a_file(mini_root: Path, tmp_path: Path) -> None:
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    chosen = dataset.train_image_ids()[3:5]
    path = tmp_path / "ids.json"
    path.write_text(json.dumps(chosen))
    assert list(make_split(dataset, 0.9, 7, str(path)).image_ids) == chosen
    names = dataset.image_names()
    path.write_text("".join(f"{names[image_id]}\n" for image_id in chosen))
    assert list(make_split(dataset, 0.9, 7, str(path)).image_ids) == chosen
    path.write_text(json.dumps([*chosen, 999_999]))
    with pytest.raises(DataError, match="999999"):
        make_split(dataset, 0.9, 7, str(path))


def test_what_nobody_has_drawn_is_unlabelled_beside_what_somebody_has(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    mask = [[1, 1, 5, 1, 5, 5]]
    rows: list[dict] = [{"expression": "the mug", "mask": mask}, {"expression": "the lid"}]
    (tmp_path / "photos.jsonl").write_text(
        "".join(json.dumps({"image": "a.png", **row}) + "\n" for row in rows)
    )
    split = make_split(load_jsonl(tmp_path / "photos.jsonl"), 1.0, 0)
    ((mug,),), ((lid,),) = split.labelled, split.unlabelled
    assert (mug.expression, lid.expression) == ("the mug", "the lid")
