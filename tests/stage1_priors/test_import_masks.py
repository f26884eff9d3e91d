"""Masks from outside: round trips from both kinds of source, and everything a source can do wrong."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image

from shared.config import DataConfig, apply_overrides
from shared.errors import DataError
from shared.images import image_size_hw
from shared.refer import load_refer
from shared.store.reader import PriorStore
from shared.types import AnswerStatus
from stage1_priors.config import ImportConfig
from stage1_priors.dry_run import describe_plan
from stage1_priors.mask_source import as_prob, has_proportions, open_source, to_grid
from stage1_priors.proposals import NO_PRIOR
from stage1_priors.quality import score_store
from stage1_priors.run import run_priors

REPOSITORY = Path(__file__).resolve().parents[2]
GRID = 16


@pytest.fixture
def dataset(refshapes_root):
    return load_refer(refshapes_root, "refshapes", "unc")


@pytest.fixture
def config(tmp_path, refshapes_root):
    (tmp_path / "masks").mkdir()
    return ImportConfig(
        data=DataConfig(root=str(refshapes_root), dataset="refshapes"),
        source=str(tmp_path / "masks"),
        splits=("val", "testA"),
        grid=GRID,
        cache_root=str(tmp_path / "cache"),
    )


def soft_mask(dataset, sample):
    """The true mask at 0.9 and the rest at 0.2: float32 [128, 128]."""
    return np.where(dataset.mask(sample), 0.9, 0.2).astype(np.float32)


def samples_of(dataset, config):
    return [sample for split in config.splits for sample in dataset.samples(split)]


def write_folder(dataset, config, leave_out=()):
    """All types and two resolutions, in turn; returns the probabilities by sample id."""
    written = {}
    for number, sample in enumerate(samples_of(dataset, config)):
        if sample.sample_id in leave_out:
            continue
        prob = soft_mask(dataset, sample)[:: 1 + number % 2, :: 1 + number % 2]
        path = Path(config.source) / sample.sample_id
        kind = number % 5
        if kind == 0:
            Image.fromarray(np.rint(prob * 255).astype(np.uint8)).save(f"{path}.png")
        elif kind == 1:
            Image.fromarray(np.rint(prob * 65535).astype(np.uint16)).save(f"{path}.png")
        elif kind == 2:
            prob = (prob > 0.5).astype(np.float32)
            Image.fromarray(prob > 0.5).save(f"{path}.png")
        elif kind == 3:
            np.save(f"{path}.npy", prob.astype(np.float16))
        else:
            np.save(f"{path}.npy", np.rint(prob * 255).astype(np.uint8))
        written[sample.sample_id] = prob
    return written


def text_array(texts, kind):
    if kind == "text":
        return np.array(texts)
    width = max(len(text.encode()) for text in texts)
    return np.array([list(text.encode().ljust(width, b"\0")) for text in texts], np.uint8)


def write_zarr(path, ids, mask, fmt=3, ids_as="bytes", chunks=None, expressions=None):
    group = zarr.open_group(path, mode="w", zarr_format=fmt)
    group.create_array("sample_id", data=text_array(ids, ids_as))
    if expressions is not None:
        group.create_array("expression", data=text_array(expressions, ids_as))
    group.create_array("mask", data=mask, chunks=chunks or (7, *mask.shape[1:]))


def run(config, **options):
    return run_priors(config, quiet=True, **options)


def test_every_type_of_file_comes_through(config, dataset):
    written = write_folder(dataset, config)
    store = PriorStore(run(apply_overrides(config, ["missing_ceiling=0"])))  # none is missing
    store.require_complete()
    assert store.status_counts() == {"imported": len(written)}
    for sample_id, prob in written.items():
        got = store.batch("proposal", store.rows_of([sample_id]))[0]
        assert np.abs(got.astype(int) - to_grid(prob, GRID)).max() <= 1
    assert np.isnan(store.column("box_xyxy_norm")).all() and np.isnan(store.column("proposer_iou")).all()
    assert set(store.texts("raw_text", range(store.num_rows))) == {""}


def test_a_mask_on_the_grid_by_hand():
    own = np.array([[0, 1], [0.5, 0.25]], np.float32)
    assert to_grid(own, 2).tolist() == [[0, 255], [128, 64]]
    larger = np.array([[0, 1]], np.float32)
    assert to_grid(larger, 4).tolist() == [[0, 64, 191, 255]] * 4
    fine = (np.indices((32, 32)).sum(0) % 2).astype(np.float32)
    assert np.abs(to_grid(fine, 4).astype(int) - 127.5).max() < 3, "averaged, not picked"
    left = np.zeros((16, 32), np.float32)
    left[:, :16] = 1
    assert (to_grid(left, 8)[:, [0, 1, 6, 7]] == [255, 255, 0, 0]).all()


def test_scores_of_imported_masks(config, dataset):
    write_folder(dataset, config)
    scores = score_store(run(apply_overrides(config, ["grid=64"])))
    assert list(scores) == ["val", "testA"]
    for result in scores.values():
        assert result["miou"] > 0.8 and result["status"] == {"imported": 1.0}
        assert result["box_miou"] is None and result["auroc"] is None


@pytest.mark.parametrize(("fmt", "ids_as"), [(2, "bytes"), (3, "bytes"), (2, "text")])
def test_a_zarr_group_gives_the_same_rows_as_files(config, dataset, tmp_path, fmt, ids_as):
    samples = samples_of(dataset, config)
    masks = np.stack([np.rint(soft_mask(dataset, sample) * 255).astype(np.uint8) for sample in samples])
    for sample, mask in zip(samples, masks, strict=True):
        np.save(Path(config.source) / f"{sample.sample_id}.npy", mask)
    order = np.random.default_rng(0).permutation(len(samples))
    write_zarr(tmp_path / "m.zarr", [samples[k].sample_id for k in order], masks[order], fmt, ids_as)
    files, group = (
        PriorStore(run(config)),
        PriorStore(run(apply_overrides(config, [f"source={tmp_path}/m.zarr"]))),
    )
    assert files.attrs["fingerprint"] != group.attrs["fingerprint"]
    for name in files.fields:
        np.testing.assert_array_equal(files.column(name), group.column(name), err_msg=name)


LONG = "the mug with the blue handle on the upper shelf, left of the jar of olives that is half empty"


@pytest.fixture
def own(tmp_path):
    """Six lines about three photos of three sizes; the ids of their pairs are numbers of lines."""
    lines = []
    for name, size in (("wide", (60, 40)), ("tall", (40, 60)), ("square", (50, 50))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
        lines += [{"image": f"{name}.png", "expression": f"the {name} {what}"} for what in ("mug", "jar")]
    lines[0]["expression"] = LONG
    return lines


def own_config(tmp_path, lines):
    (tmp_path / "photos.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return ImportConfig(
        data=DataConfig(root=str(tmp_path / "photos.jsonl"), dataset=""),
        source=str(tmp_path / "m"),
        splits=("train",),
        grid=GRID,
        cache_root=str(tmp_path / "cache"),
    )


@pytest.mark.parametrize("change", ["inserted", "deleted"])
def test_masks_of_lines_that_moved_are_refused_by_their_proportions(tmp_path, own, change):
    (tmp_path / "m").mkdir()
    for number, line in enumerate(own, 1):
        height, width = image_size_hw(tmp_path / line["image"])
        Image.new("L", (2 * width, 2 * height), 99).save(tmp_path / "m" / f"photos.jsonl.{number}.png")
    assert PriorStore(run(own_config(tmp_path, own))).status_counts() == {"imported": 6}
    moved = [own[0], *own] if change == "inserted" else own[1:]
    if change == "deleted":
        (tmp_path / "m" / "photos.jsonl.6.png").unlink()
    number, found = (3, "height 120 and width 80") if change == "inserted" else (2, "height 80 and width 120")
    told = rf"photos.jsonl.{number}.png: a mask of {found} for photos.jsonl.{number} \('the .* of .*.png, height "
    with pytest.raises(DataError, match=told):
        run(own_config(tmp_path, moved))


@pytest.mark.parametrize("ids_as", ["bytes", "text"])
def test_masks_made_for_other_expressions_are_refused_where_the_source_says_so(tmp_path, own, ids_as):
    ids, square = [f"photos.jsonl.{number}" for number in range(1, 7)], np.full((6, 8, 8), 99, np.uint8)
    said = [line["expression"][:80] for line in own]
    write_zarr(tmp_path / "m", ids, square, ids_as=ids_as, expressions=[*said[:5], ""])
    assert PriorStore(run(own_config(tmp_path, own))).status_counts() == {"imported": 6}
    told = (
        r"m: 4 of 6 masks were made for another expression, first .*m: mask row 1: 'photos.jsonl.2' was 'the wide jar' "
        r"and is 'the mug.*numbers of lines, which move"
    )
    with pytest.raises(DataError, match=told):
        run(own_config(tmp_path, [own[0], *own]))
    write_zarr(tmp_path / "m", ids, square, ids_as=ids_as, expressions=said[:3])
    with pytest.raises(DataError, match="m: 3 expressions for 6 sample_ids"):
        run(own_config(tmp_path, own))


@pytest.mark.parametrize(
    ("size_hw", "image_hw", "fits"),
    [
        ((427, 640), (427, 640), True),
        ((480, 480), (427, 640), True),  # a network's own input
        ((213, 320), (427, 640), True),
        ((214, 320), (427, 640), True),
        ((107, 160), (427, 640), True),
        ((420, 644), (427, 640), True),  # to multiples of 28
        ((416, 640), (427, 640), True),  # of 32
        ((2, 3), (427, 640), True),
        ((480, 640), (427, 640), False),
        ((640, 427), (427, 640), False),
        ((424, 640), (500, 375), False),
        ((333, 500), (375, 500), False),
        ((211, 320), (427, 640), False),
    ],
)
def test_proportions_that_may_be_those_of_an_image(size_hw, image_hw, fits):
    assert has_proportions(size_hw, image_hw) is fits


def test_missing_masks_are_a_counted_status(config, dataset):
    left_out = {sample.sample_id for sample in samples_of(dataset, config)[::3]}
    write_folder(dataset, config, left_out)
    store = PriorStore(run(config))
    assert store.status_counts() == {
        "imported": store.num_rows - len(left_out),
        "not_imported": len(left_out),
    }
    rows = store.rows_of(sorted(left_out))
    assert (store.batch("proposal", rows) == NO_PRIOR).all()
    assert not AnswerStatus.NOT_IMPORTED.has_prior and AnswerStatus.IMPORTED.has_prior
    strict = apply_overrides(config, ["missing_ceiling=0.1", "grid=8"])
    with pytest.raises(DataError, match=rf"no mask for {len(left_out)} of {store.num_rows} rows, first"):
        run(strict)
    assert not describe_plan(strict)["exists"]


def test_a_second_run_reads_nothing_and_starts_nothing(config, dataset):
    write_folder(dataset, config)
    path = run(config)
    plan = describe_plan(config)
    assert plan["store"] == str(path) and plan["pending_shards"] == 0 and plan["source"] == config.source
    import pickle

    code = (
        "import sys, pickle\n"
        "from stage1_priors.run import run_priors\n"
        f"config = pickle.loads({pickle.dumps(config)!r})\n"
        "run_priors(config, quiet=True)\n"
        "print([name for name in ('torch', 'vllm', 'transformers', 'zarr') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_changed_masks_are_another_store(config, dataset):
    write_folder(dataset, config)
    before = run(config)
    file = next(Path(config.source).glob("*.npy"))
    np.save(file, np.zeros((5, 5), np.float32))
    plan = describe_plan(config)
    assert len(plan["changed"]) == 1 and plan["changed"][0].startswith("proposer.masks: ")
    assert run(config) != before


def test_workers_share_the_rows(config, dataset):
    whole = apply_overrides(config, ["splits=train,val,testA,testB"])
    write_folder(dataset, whole)
    first = run(whole, worker=0, num_workers=2)
    assert not PriorStore(first).is_complete
    assert run(whole, worker=1, num_workers=2) == first and PriorStore(first).is_complete


def test_unknown_samples_are_refused_and_other_splits_are_not(config, dataset):
    write_folder(dataset, config)
    other = dataset.samples("train")[0]
    np.save(Path(config.source) / f"{other.sample_id}.npy", np.zeros((4, 4), bool))
    run(config)
    np.save(Path(config.source) / "refshapes.unc.999999.npy", np.zeros((4, 4), bool))
    with pytest.raises(
        DataError, match="1 of .* masks name no sentence of refshapes.*'refshapes.unc.999999'"
    ):
        run(apply_overrides(config, ["grid=8"]))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((4, 4), np.nan, np.float32), "row 0, column 0 is nan, expected a probability"),
        (np.array([[0, 1], [0.5, 1.01]]), r"row 1, column 1 is 1.01"),
        (np.array([[-0.1]]), r"row 0, column 0 is -0.1"),
        (np.zeros((3, 3, 1), np.uint8), r"shape is \[3, 3, 1\]"),
        (np.zeros((0, 3), np.uint8), r"shape is \[0, 3\]"),
        (np.zeros((1, 20_000), np.uint8), r"shape is \[1, 20000\]"),
        (np.zeros((3, 3), np.int64), "type is int64"),
        (np.zeros((3, 3), complex), "type is complex128"),
        (np.zeros((3, 3), "U4"), "type is <U4"),
    ],
)
def test_arrays_that_are_no_soft_mask(array, message):
    with pytest.raises(DataError, match=f"a.npy: {message}"):
        as_prob(array, "a.npy")


@pytest.mark.parametrize("kind", ["folder", "group"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_whole_numbers_that_never_pass_one_are_on_another_scale(tmp_path, kind, dtype):
    """One mask may be so faint; where all are, 0 and 1 were written for background and object."""
    masks, full = np.zeros((4, 4, 4), dtype), np.iinfo(dtype).max
    masks[:, 1, 1] = 1

    def source(name):
        path = tmp_path / name
        if kind == "group":
            write_zarr(path, list("abcd"), masks)
        else:
            path.mkdir()
            for sample_id, mask in zip("abcd", masks, strict=True):
                np.save(path / f"{sample_id}.npy", mask)
        return open_source(path)

    with pytest.raises(DataError, match=f": the largest value is 1 where {full} counts as certain, and no"):
        source("labels").read(list("abc"))
    masks[2, 0, 0] = 5
    soft = source("soft")
    assert [prob.max() * full for prob in soft.read(list("abc"))] == pytest.approx([1, 1, 5])
    assert soft.read(["d"])[0].max() * full == pytest.approx(1)  # judged with those before it


def pickled(path):
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


def archive(path):
    with path.open("wb") as file:
        np.savez(file, a=np.zeros((2, 2)))


def short(path):
    np.save(path, np.zeros((64, 64), np.float32))
    path.write_bytes(path.read_bytes()[:600])


def huge(path):
    np.save(path, np.zeros((2, 2), np.float32))
    path.write_bytes(path.read_bytes().replace(b"(2, 2)", b"(9999999, 99999)"))


@pytest.mark.parametrize("spoil", [pickled, archive, short, huge])
def test_npy_files_that_are_not_one_array(config, dataset, spoil):
    write_folder(dataset, config)
    file = next(Path(config.source).glob("*.npy"))
    spoil(file)
    with pytest.raises(DataError, match=file.name):
        run(config)


def test_png_files_that_are_no_mask(config, dataset, tmp_path):
    write_folder(dataset, config)
    file = next(Path(config.source).glob("*.png"))
    Image.new("RGB", (8, 8)).save(file)
    with pytest.raises(DataError, match=rf"{file.name}: a PNG of mode RGB, expected one grey channel"):
        run(config)
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"junk" * 20)
    with pytest.raises(DataError, match=f"{file.name}: mask cannot be read"):
        run(config)
    Image.new("L", (8, 8)).save(file, format="JPEG")
    with pytest.raises(DataError, match=f"{file.name}: mask cannot be read"):
        run(config)


def test_two_files_of_one_sample(tmp_path):
    np.save(tmp_path / "a.b.1.npy", np.zeros((2, 2)))
    Image.new("L", (2, 2)).save(tmp_path / "a.b.1.png")
    with pytest.raises(DataError, match=r"sample 'a.b.1' has two masks, a.b.1.npy and a.b.1.png"):
        open_source(tmp_path)


def test_sources_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match="no folder of masks there"):
        open_source(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no .png or .npy file"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        (["a", "b"], np.zeros((3, 4, 4), bool), r"mask is \[3, 4, 4\], expected \[2, h, w\]"),
        (["a", "b"], np.zeros((2, 4), bool), r"mask is \[2, 4\]"),
        (["a", "a"], np.zeros((2, 4, 4), bool), "sample_id 'a' is in row 0 and again in row 1"),
    ],
)
def test_zarr_groups_that_do_not_fit_together(tmp_path, ids, mask, message):
    write_zarr(tmp_path / "m.zarr", ids, mask)
    with pytest.raises(DataError, match=message):
        open_source(tmp_path / "m.zarr")


def test_zarr_groups_without_the_arrays_or_damaged(tmp_path):
    group = zarr.open_group(tmp_path / "m.zarr", mode="w")
    with pytest.raises(DataError, match="has no array 'sample_id'"):
        open_source(tmp_path / "m.zarr")
    group.create_array("sample_id", data=np.zeros((2, 3), np.int32))
    group.create_array("mask", data=np.zeros((2, 3, 3), bool))
    with pytest.raises(DataError, match=r"sample_id is int32 \[2, 3\], expected text"):
        open_source(tmp_path / "m.zarr")
    (tmp_path / "m.zarr" / "zarr.json").write_text("{broken")
    with pytest.raises(DataError, match="not readable as a Zarr group"):
        open_source(tmp_path / "m.zarr")


def half_exported(tmp_path, dataset, config, fill=0.0, **layout):
    """A group with every id, whose masks were written for the first half of the rows alone; returns its path."""
    samples = samples_of(dataset, config)
    ids = np.array([list(one.sample_id.encode().ljust(40, b"\0")) for one in samples], np.uint8)
    group = zarr.open_group(tmp_path / "half.zarr", mode="w")
    group.create_array("sample_id", data=ids)
    array = group.create_array(
        "mask", shape=(len(samples), 128, 128), dtype="float32", fill_value=fill, **layout
    )
    half = samples[: len(samples) // 2]
    array[: len(half)] = np.stack([soft_mask(dataset, sample) for sample in half])
    return tmp_path / "half.zarr"


LAYOUTS = {
    "a chunk a mask": {"chunks": (1, 128, 128)},
    "chunks of several masks": {"chunks": (7, 128, 128)},
    "one chunk in which the export ended": {"chunks": (512, 128, 128)},
    "tiles": {"chunks": (1, 64, 64)},
    "shards": {"chunks": (1, 128, 128), "shards": (16, 128, 128)},
    "a fill value that is none": {"chunks": (7, 128, 128), "fill": np.nan},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_killed_export_teaches_no_background(config, dataset, tmp_path, layout):
    """Zarr reads what was never written as the fill value: that is no mask of background."""
    path = half_exported(tmp_path, dataset, config, **LAYOUTS[layout])
    store = PriorStore(run(apply_overrides(config, [f"source={path}", "missing_ceiling=1"])))
    num = store.num_rows // 2
    assert store.status_counts() == {"imported": num, "not_imported": store.num_rows - num}
    assert (store.column("proposal")[num:] == NO_PRIOR).all()
    assert (store.column("proposal")[:num] != NO_PRIOR).any(axis=(1, 2)).all()


def test_masks_that_were_never_written_count_before_anything_is(config, dataset, tmp_path, capsys):
    path = half_exported(tmp_path, dataset, config, chunks=(1, 128, 128))
    num = len(samples_of(dataset, config))
    named = apply_overrides(config, [f"source={path}", "missing_ceiling=0.4"])
    told = rf"no mask for {num - num // 2} of {num} rows \({num - num // 2} masks were never written, or hold"
    with pytest.raises(DataError, match=told):
        run(named)
    assert not describe_plan(named)["exists"]
    run_priors(apply_overrides(named, ["missing_ceiling=0.6"]))
    assert f"no mask for {num - num // 2} of {num} rows" in capsys.readouterr().err


def test_masks_found_empty_as_they_are_read_are_told(config, dataset, tmp_path, capsys):
    path = half_exported(tmp_path, dataset, config, **LAYOUTS["one chunk in which the export ended"])
    num = len(samples_of(dataset, config))
    run_priors(apply_overrides(config, [f"source={path}"]))
    assert f"{num - num // 2} masks more hold the fill value alone, which is none" in capsys.readouterr().err


def test_a_tile_of_zeros_is_part_of_its_mask(config, dataset, tmp_path):
    """Zarr leaves it out on purpose: the others are there."""
    samples = samples_of(dataset, config)
    masks = np.zeros((len(samples), 128, 128), np.uint8)
    masks[:, :64, :64] = 200
    write_zarr(tmp_path / "m.zarr", [one.sample_id for one in samples], masks, chunks=(1, 64, 64))
    assert not (tmp_path / "m.zarr" / "mask" / "c" / "0" / "1").exists()
    store = PriorStore(run(apply_overrides(config, [f"source={tmp_path}/m.zarr"])))
    assert store.status_counts() == {"imported": len(samples)}
    assert (store.column("proposal")[:, -1, -1] == 0).all()


@pytest.mark.parametrize("fmt", [2, 3])
def test_a_group_of_which_nothing_was_written(tmp_path, fmt):
    write_zarr(tmp_path / "m.zarr", ["a", "b"], np.zeros((2, 4, 4), bool), fmt)
    source = open_source(tmp_path / "m.zarr")
    assert source.sample_ids == frozenset() and source.num_unwritten == 2


def test_a_bad_row_of_a_zarr_group_is_named(tmp_path):
    mask = np.full((3, 4, 4), 0.5, np.float32)
    mask[2, 1, 3] = 7
    write_zarr(tmp_path / "m.zarr", ["a", "b", "c"], mask)
    source = open_source(tmp_path / "m.zarr")
    assert source.read([]) == [] and [part.shape for part in source.read(["b", "a"])] == [(4, 4)] * 2
    with pytest.raises(DataError, match="mask row 2: row 1, column 3 is 7.0"):
        source.read(["a", "c"])
