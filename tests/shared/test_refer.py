"""The REFER reader: order, layouts, masks, leaks, and one line for every broken row."""

import pickle

import numpy as np
import pytest
from PIL import Image

from shared.errors import DataError
from shared.images import read_image
from shared.refer import MaskAccessError, ReferringDataset, load_refer
from shared.refer_check import check_refer
from shared.refer_layout import IMAGE_FOLDERS
from shared.types import Sample
from tests.shared.refer_fixture import BROKEN, REF_ORDER, TRAIN_IMAGE_IDS, set_field, write_refer_fixture


@pytest.fixture
def written(tmp_path):
    return write_refer_fixture(tmp_path)


@pytest.fixture
def dataset(written):
    return load_refer(*written.args)


def test_samples_are_sorted_by_ref_then_sentence(dataset):
    samples = dataset.samples()
    assert [s.sent_id for s in samples] == [10 * ref_id + k for ref_id in REF_ORDER for k in (0, 1)]
    assert len({s.sample_id for s in samples}) == len(samples) == 18
    assert samples[0] == Sample(
        sample_id="tiny.unc.10",
        image_id=103,
        file_name="tiny_000103.jpg",
        height=16,
        width=10,
        ref_id=1,
        ann_id=1001,
        sent_id=10,
        expression="the thing",
        split="train",
    )


def test_splits(dataset):
    assert dataset.splits == ("train", "val", "testA", "testB")
    counts = {split: len(dataset.samples(split)) for split in dataset.splits}
    assert counts == {"train": 10, "val": 4, "testA": 2, "testB": 2}
    with pytest.raises(
        DataError, match=r"tiny \(unc\) has no split 'test' \(it has train, val, testA, testB\)"
    ):
        dataset.samples("test")


def test_train_images_in_order_of_first_appearance(dataset):
    assert dataset.train_image_ids() == TRAIN_IMAGE_IDS


def test_callers_cannot_change_the_reader(dataset):
    dataset.samples().clear()
    dataset.train_image_ids().clear()
    assert len(dataset.samples()) == 18 and dataset.train_image_ids() == TRAIN_IMAGE_IDS


def test_blank_normalised_text_falls_back_to_the_raw_text(dataset):
    assert [s.expression for s in dataset.samples() if s.ref_id == 5] == ["the thing", "thing number 5"]


def test_masks_and_boxes_of_every_form(written, dataset):
    for sample in dataset.samples():
        mask = dataset.mask(sample)
        assert mask.dtype == bool and mask.shape == (sample.height, sample.width)
        np.testing.assert_array_equal(mask, written.masks[sample.ann_id])
        rows, columns = np.nonzero(mask)
        expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_array_equal(dataset.box_xyxy_px(sample), expected)


@pytest.mark.parametrize("folder", IMAGE_FOLDERS)
def test_image_folders(tmp_path, folder):
    dataset = load_refer(*write_refer_fixture(tmp_path, image_folder=folder).args)
    for sample in dataset.samples():
        image = dataset.image(sample)
        assert image.mode == "RGB" and image.size == (sample.width, sample.height)
        assert dataset.image_path(sample) == dataset.image_path(sample.file_name)
        assert dataset.image_path(sample) == tmp_path / folder / sample.file_name


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_pickle_protocol_reads_alike(tmp_path, protocol):
    plain = load_refer(*write_refer_fixture(tmp_path / "a").args).samples()
    assert load_refer(*write_refer_fixture(tmp_path / "b", protocol=protocol).args).samples() == plain


def test_a_pickle_of_python_2_reads_alike(tmp_path):
    plain = load_refer(*write_refer_fixture(tmp_path / "a").args).samples()
    assert load_refer(*write_refer_fixture(tmp_path / "b", python2=True).args).samples() == plain


LAYOUTS = {
    ("refcoco", "unc"): ("images", False),
    ("refcoco", "google"): ("images", True),
    ("refcoco+", "unc"): ("images/train2014", False),
    ("refcocog", "umd"): ("images/mscoco/images/train2014", True),
    ("refcocog", "google"): ("images/mscoco/images/train2014", False),
    ("refclef", "unc"): ("images/saiapr_tc-12", True),
    ("refclef", "berkeley"): ("images/saiapr_tc-12", False),
}


def test_all_layouts_below_one_root(tmp_path):
    """One root as people have it: images in three places, pickles of both Pythons, several splits of one data set."""

    def several_rles(refs, instances):  # RefCLEF: a list of run lengths
        for row in instances["annotations"]:
            if isinstance(row["segmentation"], dict):
                row["segmentation"] = [row["segmentation"]]

    written = {}
    for (name, split_by), (folder, python2) in LAYOUTS.items():
        edit = several_rles if name == "refclef" else None
        written[name, split_by] = write_refer_fixture(
            tmp_path, dataset=name, split_by=split_by, image_folder=folder, python2=python2, edit=edit
        )
    for (name, split_by), expected in written.items():
        data = load_refer(tmp_path, name, split_by)
        assert len({sample.sample_id for sample in data.samples()}) == 18
        for sample in data.samples():
            np.testing.assert_array_equal(data.mask(sample), expected.masks[sample.ann_id])
            assert data.image(sample).size == (sample.width, sample.height)


def test_other_split_bys_stand_side_by_side(tmp_path):
    write_refer_fixture(tmp_path, dataset="refcocog", split_by="umd")
    write_refer_fixture(tmp_path, dataset="refcocog", split_by="google", edit=lambda refs, _: refs.pop())
    umd, google = (load_refer(tmp_path, "refcocog", by) for by in ("umd", "google"))
    assert (len(umd.samples()), len(google.samples())) == (18, 16)
    assert google.samples()[0].sample_id == "refcocog.google.10"
    with pytest.raises(
        DataError, match=r"refs\(unc\)\.p: not found; split_by 'unc' is not among google, umd"
    ):
        load_refer(tmp_path, "refcocog", "unc")


def test_loading_reads_no_image(written):
    for path in (written.root / "images").iterdir():
        path.unlink()
    dataset = load_refer(*written.args)
    assert dataset.mask(dataset.samples()[0]).any()
    with pytest.raises(DataError, match=r"image tiny_000103.jpg is in none of images, "):
        dataset.image(dataset.samples()[0])


def test_fingerprint_covers_both_files(tmp_path):
    first = load_refer(*write_refer_fixture(tmp_path / "a").args).fingerprint()
    assert load_refer(*write_refer_fixture(tmp_path / "b").args).fingerprint() == first

    def reword(refs, instances):
        refs[0]["sentences"][0]["sent"] = "another thing"

    def move(refs, instances):
        instances["annotations"][0]["segmentation"][0][0] += 1

    edited = [load_refer(*write_refer_fixture(tmp_path / e.__name__, edit=e).args) for e in (reword, move)]
    assert len({first, *(dataset.fingerprint() for dataset in edited)}) == 3


def test_without_masks_holds_no_other_mask(written, dataset):
    reader = dataset.without_masks([101])
    for sample in reader.samples():
        if sample.image_id == 101:
            np.testing.assert_array_equal(reader.mask(sample), dataset.mask(sample))
        else:
            for read in (reader.mask, reader.box_xyxy_px):
                with pytest.raises(
                    MaskAccessError, match=f"mask of {sample.sample_id} .image {sample.image_id}"
                ):
                    read(sample)
    # Dropped, not hidden: nothing of them travels to a worker process.
    other = next(s for s in dataset.samples() if s.image_id == 104)
    counts = dataset._segmentations[other.ann_id]["counts"].encode()
    assert counts in pickle.dumps(dataset) and counts not in pickle.dumps(reader)
    assert reader.samples() == dataset.samples() and reader.fingerprint() == dataset.fingerprint()
    assert dataset.mask(other).any()


def test_without_masks_forgets_which_masks_were_read(dataset):
    samples = dataset.samples()
    dataset.require_masks(samples)
    reader = dataset.without_masks([101])
    with pytest.raises(MaskAccessError):
        reader.require_masks(samples)


def test_without_masks_cannot_be_widened_again(dataset):
    reader = dataset.without_masks([101]).without_masks([101, 102])
    samples = {sample.image_id: sample for sample in reader.samples()}
    assert reader.mask(samples[101]).any()
    with pytest.raises(MaskAccessError):
        reader.mask(samples[102])


def test_a_reader_of_some_samples_holds_what_is_theirs_alone(dataset):
    dataset.require_masks(dataset.samples())
    kept, other = dataset.samples()[:1], next(s for s in dataset.samples() if s.image_id == 104)
    reader = pickle.loads(pickle.dumps(dataset.only(kept)))
    assert reader.samples() == kept and reader.splits == (kept[0].split,)
    assert reader.fingerprint() == dataset.fingerprint()
    np.testing.assert_array_equal(reader.mask(kept[0]), dataset.mask(kept[0]))
    assert reader.image_names() == {kept[0].image_id: kept[0].file_name}
    assert reader.train_image_ids() == [i for i in dataset.train_image_ids() if i == kept[0].image_id]
    assert reader.has_mask(kept[0]) and reader.weak_box_xyxy_px(kept[0]) is None
    reader.require_masks(kept)
    # Nothing of the others travels to a worker process.
    counts = dataset._segmentations[other.ann_id]["counts"].encode()
    assert counts in pickle.dumps(dataset) and counts not in pickle.dumps(reader)
    assert not reader.has_mask(other)
    assert dataset.mask(other).any() and len(dataset.samples()) > 1


def test_a_reader_of_some_samples_gives_out_no_further_mask(dataset):
    sample = next(s for s in dataset.samples() if s.image_id == 104)
    for reader in (dataset.without_masks([101]).only([sample]), dataset.only([sample]).without_masks([101])):
        with pytest.raises(MaskAccessError):
            reader.mask(sample)


def test_reader_travels_to_worker_processes(dataset):
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.samples() == dataset.samples()


def test_reader_satisfies_the_protocol(dataset):
    assert isinstance(dataset, ReferringDataset)
    assert not isinstance(object(), ReferringDataset)


def test_exif_orientation_is_honoured(tmp_path):
    pixels = np.zeros((4, 6, 3), dtype=np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    image = read_image(tmp_path / "turned.png")
    assert image.size == (4, 6)
    assert np.argwhere(np.asarray(image)[..., 0] == 255).tolist() == [[0, 3]]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_other_colour_modes_become_rgb(tmp_path, mode):
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    Image.new(mode, (5, 3)).save(path)
    assert read_image(path).mode == "RGB"


def test_image_of_another_size(written, dataset):
    sample = dataset.samples()[0]
    Image.new("RGB", (sample.height, sample.width)).save(dataset.image_path(sample))
    with pytest.raises(DataError, match="103.jpg: image 103: width x height 16 x 10, but .* says 10 x 16"):
        dataset.image(sample)


def test_a_smaller_image_is_given_only_where_the_file_has_the_annotated_size(written, dataset):
    sample = dataset.samples()[0]
    assert dataset.image(sample, (4, 2)).size == (5, 8)  # 10 x 16 at half its size
    assert dataset.image(sample, (5, 2)).size == (10, 16)
    Image.new("RGB", (2 * sample.width, 2 * sample.height)).save(dataset.image_path(sample))
    for size_hw in (None, (4, 2), (5, 2)):
        with pytest.raises(DataError, match="width x height 20 x 32, but .* says 10 x 16"):
            dataset.image(sample, size_hw)


def test_truncated_and_corrupt_images(written, dataset):
    sample = dataset.samples()[0]
    path = dataset.image_path(sample)
    data = path.read_bytes()
    for broken in (data[:-40], data[:100], b"no image", b""):
        path.write_bytes(broken)
        with pytest.raises(DataError, match="tiny_000103.jpg: image cannot be read") as caught:
            dataset.image(sample)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["../secret.jpg", "/etc/passwd", "a/../../b.jpg", "a\\..\\b.jpg", "a\0.jpg", ""]
)
def test_file_names_cannot_leave_the_image_folder(tmp_path, name):
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    dataset = load_refer(*write_refer_fixture(tmp_path).args)
    with pytest.raises(DataError, match="leads out of the image folder"):
        dataset.image_path(name)

    def rename(refs, instances):
        instances["images"][1]["file_name"] = name

    with pytest.raises(DataError, match=r"instances.json: images\[1\] \(id 102\): file_name .* leads out"):
        load_refer(*write_refer_fixture(tmp_path, edit=rename).args)


def test_malformed_segmentation_names_file_and_annotation(tmp_path):
    def edit(refs, instances):
        instances["annotations"][0]["segmentation"] = [[1, 2, 3]]

    dataset = load_refer(*write_refer_fixture(tmp_path, edit=edit).args)
    sample = next(s for s in dataset.samples() if s.ann_id == 1007)
    for read in (dataset.mask, dataset.box_xyxy_px):
        with pytest.raises(DataError, match="instances.json: annotation 1007: polygon of 3 numbers"):
            read(sample)


def test_an_empty_segmentation_is_a_box_without_a_mask(tmp_path):
    written = write_refer_fixture(tmp_path, edit=set_field(1, "annotations", 0, "segmentation", []))
    dataset = load_refer(*written.args)
    bare = [sample for sample in dataset.samples() if not dataset.has_mask(sample)]
    assert {sample.ann_id for sample in bare} == {1007}
    report = check_refer(*written.args)
    assert report.ok and report.unlabelled == {"train": 1}


def test_masks_that_cannot_be_read_are_found_in_advance(tmp_path):
    broken = {"size": [12, 17], "counts": [203]}
    written = write_refer_fixture(tmp_path, edit=set_field(1, "annotations", 0, "segmentation", broken))
    dataset = load_refer(*written.args)
    dataset.require_masks([sample for sample in dataset.samples() if sample.ann_id != 1007])
    with pytest.raises(DataError, match="instances.json: annotation 1007: RLE runs cover 203"):
        dataset.require_masks(dataset.samples())


@pytest.mark.parametrize("name", BROKEN)
def test_broken_rows_are_named_on_one_line(tmp_path, name):
    edit, message = BROKEN[name]
    written = write_refer_fixture(tmp_path, edit=edit)
    with pytest.raises(DataError, match=message) as caught:
        load_refer(*written.args)
    assert str(caught.value).startswith(str(tmp_path)) and "\n" not in str(caught.value)


def test_what_no_ref_needs_does_not_block(tmp_path):
    def edit(refs, instances):
        instances["annotations"].append({"id": 3000, "image_id": 999, "segmentation": []})
        instances["annotations"].append(dict(instances["annotations"][0]))  # the same row twice
        refs.append({**refs[0], "ref_id": 99, "sentences": []})

    assert len(load_refer(*write_refer_fixture(tmp_path, edit=edit).args).samples()) == 18


@pytest.mark.parametrize("text", ["", "{", "[1]", "[" * 100_000])
def test_instances_that_are_not_the_json_expected(written, text):
    (written.root / "tiny" / "instances.json").write_text(text)
    with pytest.raises(DataError, match="instances.json: ") as caught:
        load_refer(*written.args)
    assert "\n" not in str(caught.value)


def test_refs_that_are_no_list(written):
    (written.root / "tiny" / "refs(unc).p").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(DataError, match=r"refs\(unc\).p: expected a list of refs, found dict"):
        load_refer(*written.args)


def test_missing_folder_and_file(tmp_path):
    with pytest.raises(DataError, match=r"refs\(unc\).p: not found; there is no folder"):
        load_refer(tmp_path, "absent", "unc")
    (tmp_path / "photos.jsonl").touch()
    with pytest.raises(DataError, match=r"no folder .*absent; is data.root=.*photos\.jsonl meant\?"):
        load_refer(tmp_path, "absent", "unc")
    (tmp_path / "photos.jsonl").unlink()
    written = write_refer_fixture(tmp_path)
    (tmp_path / "tiny" / "instances.json").unlink()
    with pytest.raises(DataError, match="instances.json: not found"):
        load_refer(*written.args)
