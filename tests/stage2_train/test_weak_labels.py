"""Weak labels: made from masks, and holding none."""

import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shared.errors import DataError
from shared.jsonl import load_jsonl
from shared.refer import MaskAccessError, ReferDataset, load_refer
from stage2_train.batch_source import BatchSource
from stage2_train.config import OmniResConfig
from stage2_train.transforms import WeakConfig
from stage2_train.weak_labels import WeakLabels, collect_weak_labels, mirror_weak_label
from tests.stage2_train.miniature import batch_of, plain_config


def samples_of(root: Path) -> tuple:
    dataset = load_refer(root / "data", "refshapes", "unc")
    return dataset, dataset.samples("train")[:12]


def test_boxes_are_the_tight_boxes(mini_root: Path) -> None:
    dataset, samples = samples_of(mini_root)
    box_B4 = collect_weak_labels(dataset, samples, "box", 0).read(samples)
    for box, sample in zip(box_B4, samples, strict=True):
        rows, columns = np.nonzero(dataset.mask(sample))
        tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        scaled = (box * torch.tensor([sample.width, sample.height] * 2)).tolist()
        assert scaled == pytest.approx(tight, abs=1e-3)


def test_points_lie_on_the_object_and_are_the_same_for_all_its_sentences(mini_root: Path) -> None:
    dataset, samples = samples_of(mini_root)
    points = collect_weak_labels(dataset, samples, "point", 0)
    by_object: dict[int, set] = {}
    for (x, y), sample in zip(points.read(samples).tolist(), samples, strict=True):
        assert dataset.mask(sample)[int(y * sample.height), int(x * sample.width)]
        by_object.setdefault(sample.ann_id, set()).add((x, y))
    assert all(len(found) == 1 for found in by_object.values())
    assert not torch.equal(
        collect_weak_labels(dataset, samples, "point", 1).read(samples), points.read(samples)
    )


def test_mirroring_twice_gives_the_label_back() -> None:
    box, point = torch.tensor([[0.1, 0.2, 0.4, 0.9]]), torch.tensor([[0.1, 0.2]])
    assert mirror_weak_label(box).tolist() == [pytest.approx([0.6, 0.2, 0.9, 0.9])]
    assert mirror_weak_label(point).tolist() == [pytest.approx([0.9, 0.2])]
    for values in (box, point):
        assert torch.allclose(mirror_weak_label(mirror_weak_label(values)), values)


@pytest.mark.parametrize("kind", ["box", "point"])
def test_weak_labels_flip_with_the_image(mini_root: Path, kind: str) -> None:
    base = plain_config(mini_root, "omni_res", omni_res=OmniResConfig(weak_label=kind))  # type: ignore[arg-type]
    parts = [
        batch_of(dataclasses.replace(base, weak=WeakConfig(flip_probability=p))).unlabelled
        for p in (0.0, 1.0)
    ]
    name = "box_B4" if kind == "box" else "point_B2"
    never, always = (getattr(part, name) for part in parts)
    assert torch.allclose(mirror_weak_label(never), always) and not torch.allclose(never, always)


def test_an_empty_annotation_has_no_weak_label(mini_root: Path) -> None:
    dataset, samples = samples_of(mini_root)

    class Empty:
        def weak_box_xyxy_px(self, sample: object) -> None:
            return None

        weak_point_xy_px = weak_box_xyxy_px

        def mask(self, sample: object) -> np.ndarray:
            return np.zeros((4, 4), dtype=bool)

        def box_xyxy_px(self, sample: object) -> np.ndarray:
            return np.zeros(4, dtype=np.float32)

    for kind in ("box", "point"):
        assert collect_weak_labels(Empty(), samples[:1], kind, 0).read(samples[:1]).isnan().all()  # type: ignore


def test_no_mask_can_be_reached_from_a_source_with_weak_labels(
    mini_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that the source holds of unlabelled annotations is a few numbers each, also after a round trip."""
    found: list[BatchSource] = []
    real = BatchSource.__call__
    monkeypatch.setattr(BatchSource, "__call__", lambda self, key: found.append(self) or real(self, key))
    batch_of(plain_config(mini_root, "omni_res"))
    source = found[0]
    labels = source.weak_labels
    assert isinstance(labels, WeakLabels) and set(vars(labels)) == {"kind", "_values"}
    assert all(
        len(numbers) == 4 and all(type(n) is float for n in numbers) for numbers in labels._values.values()
    )
    assert set(vars(pickle.loads(pickle.dumps(labels)))) == {"kind", "_values"}
    own = {sample.ann_id for ref in source.split.labelled for sample in ref}
    assert labels._values.keys().isdisjoint(own)
    with pytest.raises(MaskAccessError):
        source.reader.dataset.mask(source.split.unlabelled[0][0])
    with pytest.raises(MaskAccessError):
        source.reader.dataset.box_xyxy_px(source.split.unlabelled[0][0])


def own_data(folder: Path, *rows: dict) -> ReferDataset:
    """Lines about one image of 40 x 20 pixels."""
    Image.new("RGB", (40, 20)).save(folder / "a.jpg")
    lines = [json.dumps({"image": "a.jpg", "expression": f"thing {i}", **row}) for i, row in enumerate(rows)]
    (folder / "own.jsonl").write_text("\n".join(lines))
    return load_jsonl(folder / "own.jsonl")


@pytest.mark.parametrize(("kind", "expected"), [("box", [0.1, 0.25, 0.3, 0.75]), ("point", [0.5, 0.05])])
def test_what_is_given_is_taken_and_needs_no_mask(tmp_path: Path, kind: str, expected: list[float]) -> None:
    square = [[20, 0, 30, 0, 30, 10, 20, 10]]
    dataset = own_data(tmp_path, {"box": [4, 5, 8, 10], "point": [20, 1]}, {"mask": square})
    given, drawn = collect_weak_labels(dataset, dataset.samples(), kind, 0).read(dataset.samples()).tolist()  # type: ignore[arg-type]
    assert given == pytest.approx(expected)
    assert 0.5 <= drawn[0] <= 0.75 and 0 <= drawn[1] <= 0.5


def test_neither_weak_label_nor_mask_names_the_line(tmp_path: Path) -> None:
    dataset = own_data(tmp_path, {"box": [4, 5, 8, 10]}, {"point": [20, 1]})
    for kind, line in (("box", 2), ("point", 1)):
        with pytest.raises(
            DataError, match=f"own.jsonl: line {line}: has no mask.*, to make a {kind} of where"
        ):
            collect_weak_labels(dataset, dataset.samples(), kind, 0)  # type: ignore[arg-type]
