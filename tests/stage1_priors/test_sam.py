"""Segment Anything proposers on the real classes: one encoding per image, exact frames, rows apart from each other."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from shared.config import apply_overrides
from shared.errors import DataError
from shared.seeding import rng
from shared.store.reader import PriorStore
from shared.synth.scenes import draw_scene
from stage1_priors.config import ProposerConfig
from stage1_priors.dry_run import describe_plan
from stage1_priors.identity import locate_proposer
from stage1_priors.job import make_job
from stage1_priors.proposals import NO_PRIOR
from stage1_priors.proposers import PROPOSERS, Prompts, ProposerFailed
from stage1_priors.quality import score_store
from stage1_priors.run import run_priors
from stage1_priors.sam import EncodedImage, SamProposer, features_of, is_out_of_memory, resampling
from stage1_priors.tiny_sam import WEIGHTS_DIR
from tests.stage1_priors.fake_engine import FakeEngine
from tests.stage1_priors.sam_folders import save_as_video_model, save_random_sam, save_random_sam2

KINDS = ("sam2", "sam")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("sam")
    return {"sam2": save_random_sam2(root / "sam2"), "sam": save_random_sam(root / "sam")}


def proposer_of(folders, kind, **fields):
    config = ProposerConfig(kind=kind, path=str(folders[kind]), grid=16, **fields)
    return SamProposer(config, folders[kind])


def picture(seed, width=96, height=64):
    return Image.fromarray(rng("picture", seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def prompts_of(images, rows, no_box=()):
    """`rows`: the image of each row. Boxes are drawn; those of `no_box` are NaN."""
    draw = rng("prompts", len(rows))
    corner = draw.uniform(0, 0.5, (len(rows), 2))
    boxes = np.concatenate([corner, corner + draw.uniform(0.2, 0.5, (len(rows), 2))], 1).astype(np.float32)
    boxes[list(no_box)] = np.nan
    return Prompts(
        box_norm_B4=boxes,
        edges_B=(None,) * len(rows),
        names_B=tuple(f"{index}.jpg" for index in rows),
        images_B=tuple(images[index] for index in rows),
    )


def part_of(prompts, rows):
    return Prompts(
        box_norm_B4=prompts.box_norm_B4[rows],
        edges_B=tuple(prompts.edges_B[row] for row in rows),
        names_B=tuple(prompts.names_B[row] for row in rows),
        images_B=tuple(prompts.images_B[row] for row in rows),
    )


def count_encoded(proposer):
    """A list that grows by the number of images of every pass of the encoder."""
    seen = []
    proposer._model.vision_encoder.register_forward_hook(
        lambda module, inputs, output: seen.append(len(output.last_hidden_state)), with_kwargs=False
    )
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_encoded_once_however_many_boxes_and_calls(folders, kind):
    proposer = proposer_of(folders, kind, batch_images=2)
    seen = count_encoded(proposer)
    images = [picture(seed) for seed in range(5)]
    prompts = prompts_of(images, [0, 0, 0, 1, 2, 2, 3, 3, 3, 4], no_box=(9,))
    # The third image's rows and the fourth's lie in two calls each, as at the border of a chunk.
    for rows in ([0, 1, 2, 3, 4], [5, 6], [7, 8, 9]):
        proposer.propose(dataclasses.replace(part_of(prompts, rows), continues=rows[0] > 0))
    assert sum(seen) == 4 and max(seen) == 2  # the fifth has no box and is not looked at


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_its_batch(folders, kind):
    images = [picture(0), picture(1, 50, 70), picture(2, 33, 64)]
    prompts = prompts_of(images, [0, 0, 0, 0, 1, 1, 2])
    together = proposer_of(folders, kind, batch_images=8, batch_boxes=3).propose(prompts)
    alone = [proposer_of(folders, kind, batch_images=1).propose(part_of(prompts, [row])) for row in range(7)]
    maps = np.concatenate([part.map_BGG for part in alone])
    assert np.abs(together.map_BGG.astype(int) - maps).max() <= 1
    np.testing.assert_allclose(together.iou_B, np.concatenate([part.iou_B for part in alone]), atol=1e-4)
    assert len({row.tobytes() for row in maps}) == 7


def test_published_weights_hold_the_image_model_within_a_video_one(folders, tmp_path):
    folder = save_as_video_model(folders["sam2"], tmp_path / "video")
    assert json.loads((folder / "config.json").read_text())["model_type"] == "sam2_video"
    located = locate_proposer(ProposerConfig(kind="sam2", path=str(folder)))
    prompts = prompts_of([picture(0), picture(1, 50, 70)], [0, 0, 1])
    found = proposer_of({"sam2": located.folder}, "sam2").propose(prompts)
    want = proposer_of(folders, "sam2").propose(prompts)
    np.testing.assert_array_equal(found.map_BGG, want.map_BGG)
    np.testing.assert_array_equal(found.iou_B, want.iou_B)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_box_or_image_say_nothing(folders, kind):
    prompts = prompts_of([picture(0), None], [0, 0, 1], no_box=(1,))
    proposals = proposer_of(folders, kind).propose(prompts)
    assert (proposals.map_BGG[1:] == NO_PRIOR).all() and np.isnan(proposals.iou_B[1:]).all()
    assert len(np.unique(proposals.map_BGG[0])) > 3 and 0 <= proposals.iou_B[0] <= 1
    nothing = proposer_of(folders, kind).propose(part_of(prompts, []))
    assert nothing.map_BGG.shape == (0, 16, 16) and nothing.iou_B.shape == (0,)


@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_those_of_transformers_own_road(folders, kind, multimask):
    """Box through the processor, image and box through the model at once, no features kept in between."""
    proposer = proposer_of(folders, kind, multimask=multimask)
    image, box_norm = picture(7, 96, 48), np.array([0.25, 0.125, 0.75, 0.875], np.float32)
    prompts = Prompts(box_norm_B4=box_norm[None], edges_B=(None,), names_B=("7.jpg",), images_B=(image,))
    proposals = proposer.propose(prompts)
    processor, model = proposer._processor, proposer._model
    box_px = [[[float(value) for value in box_norm * (96, 48, 96, 48)]]]
    inputs = processor(images=image, input_boxes=box_px, return_tensors="pt")
    with torch.no_grad():
        output = model(
            pixel_values=inputs["pixel_values"],
            input_boxes=inputs["input_boxes"].float(),
            multimask_output=multimask,
        )
    best = int(output.iou_scores[0, 0].argmax())
    assert output.iou_scores.shape[-1] == (3 if multimask else 1)
    assert proposals.iou_B[0] == pytest.approx(output.iou_scores[0, 0, best].clamp(0, 1).item(), abs=1e-5)
    # The image is twice as wide as high: it fills SAM's square down to the middle, and SAM 2's wholly.
    filled = output.pred_masks[:, 0, best : best + 1].sigmoid()[:, :, : 16 if kind == "sam" else None]
    assert output.pred_masks.shape[-2:] == (32, 32)
    want, inside = (
        F.interpolate(part, (16, 16), mode="bilinear", antialias=True)[0, 0].numpy()
        for part in (filled, filled * (filled >= 0.5))
    )
    if want.max() < 0.5 and inside.any():  # the masks of random weights are noise
        want = np.maximum(want, inside / inside.max())
    np.testing.assert_allclose(proposals.map_BGG[0] / 255, want, atol=0.6 / 255)


@pytest.mark.parametrize("kind", KINDS)
def test_the_prompt_is_the_box_that_the_processor_would_give(folders, kind):
    proposer = proposer_of(folders, kind)
    asked = []
    proposer._model.prompt_encoder.register_forward_pre_hook(
        lambda module, arguments, named: asked.append(named["input_boxes"].clone()), with_kwargs=True
    )
    prompts = prompts_of([picture(3, 90, 51)], [0, 0])
    proposer.propose(prompts)
    pixels = prompts.box_norm_B4 * (90, 51, 90, 51)
    inputs = proposer._processor(
        images=prompts.images_B[0], input_boxes=[pixels.astype(float).tolist()], return_tensors="pt"
    )
    np.testing.assert_allclose(asked[0][:, 0].numpy(), inputs["input_boxes"][0].numpy(), atol=1e-3)


def test_a_mask_smaller_than_a_cell_fills_it_and_an_empty_one_stays_empty():
    """Masks of 16 x 16 samples on a grid of 4 x 4; SAM's image fills the upper half of its square."""
    asked = object.__new__(SamProposer)
    asked._config, asked._device = ProposerConfig(kind="sam", path="none", grid=4), torch.device("cpu")
    logit_NMM = torch.full((6, 16, 16), -9.0)
    logit_NMM[0, 2, 5] = 9.0
    logit_NMM[1] = -1.0  # in doubt everywhere else
    logit_NMM[1, 2, 5] = 9.0
    logit_NMM[2, 12, 5] = 9.0  # below the image
    logit_NMM[3, 2, 5] = -0.1
    logit_NMM[4, :8, :8] = 9.0
    asked._ask = lambda images, box_N4, multimask: (logit_NMM[:, None], torch.ones(6, 1))
    image = EncodedImage(features=(), filled_hw=(8, 16), square_hw=(16, 16))
    prob_NGG, _ = asked._decode([image] * 6, np.zeros((6, 4)))
    before_NGG = asked._on_grid([image] * 6, logit_NMM, 4).numpy()
    for row in (0, 1):
        assert before_NGG[row].max() < 0.5 and prob_NGG[row].max() == prob_NGG[row, 1, 1] == 1
        np.testing.assert_array_equal(prob_NGG[row, :, 2:], before_NGG[row, :, 2:])
    np.testing.assert_array_equal(prob_NGG[2:], before_NGG[2:])


@pytest.mark.parametrize("kind", KINDS)
def test_features_of_one_image_are_not_copied_and_give_the_same_bits(folders, kind):
    proposer = proposer_of(folders, kind)
    with torch.inference_mode():
        first, second = proposer.encode([picture(0), picture(1)])
        boxes = prompts_of([None], [0, 0, 0]).box_norm_B4
        for images in ([first] * 3, [first, first, second]):
            want = [torch.cat(level) for level in zip(*(image.features for image in images), strict=True)]
            found = features_of(images)
            assert all(torch.equal(one, other) for one, other in zip(found, want, strict=True))
            given = proposer._ask(images, boxes, False)
            copied = proposer._model(
                image_embeddings=want if kind == "sam2" else want[0],
                multimask_output=False,
                input_boxes=torch.tensor(boxes * np.tile(first.filled_hw[::-1], 2), dtype=torch.float32)[
                    :, None
                ],
            )
            assert torch.equal(given[0], copied.pred_masks[:, 0])
        shared = features_of([first] * 50)
    assert [one.data_ptr() for one in shared] == [one.data_ptr() for one in first.features]


def out_of_memory_above(proposer, images, boxes):
    """Make the model refuse more images and more prompts at a time, as a GPU does; and what it was given."""
    seen, model = {"images": [], "boxes": []}, proposer._model

    def refuse(what, most):
        def hook(module, inputs, named):
            seen[what].append(len(inputs[0] if inputs else named["sparse_prompt_embeddings"]))
            if seen[what][-1] > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nGPU 0 has")

        return hook

    model.vision_encoder.register_forward_pre_hook(refuse("images", images), with_kwargs=True)
    model.mask_decoder.register_forward_pre_hook(refuse("boxes", boxes), with_kwargs=True)
    return seen


@pytest.mark.parametrize(("images", "boxes"), [(2, 64), (8, 3), (1, 1)])
def test_out_of_memory_less_goes_together(folders, images, boxes, capsys):
    prompts = prompts_of([picture(n) for n in range(5)], [0, 0, 0, 0, 0, 1, 2, 3, 3, 4])
    want = proposer_of(folders, "sam2").propose(prompts)
    proposer = proposer_of(folders, "sam2")
    seen = out_of_memory_above(proposer, images, boxes)
    found = proposer.propose(prompts)
    assert np.abs(found.map_BGG.astype(int) - want.map_BGG).max() <= 1
    said = capsys.readouterr().err.splitlines()
    assert said and said[0] == (
        "SAM is out of memory: going on with proposer.batch_images=4 and proposer.batch_boxes=32"
    )
    seen["images"].clear()
    seen["boxes"].clear()
    proposer.propose(prompts)  # it has learnt
    assert max(seen["images"]) <= images and max(seen["boxes"]) <= boxes and not capsys.readouterr().err


def test_too_little_memory_for_one_names_both_settings_and_the_image(folders, capsys):
    proposer = proposer_of(folders, "sam2", batch_images=2, batch_boxes=2)
    out_of_memory_above(proposer, 8, 0)
    with pytest.raises(
        ProposerFailed,
        match=r"at proposer.batch_images=1 and proposer.batch_boxes=1, for 0.jpg: OutOfMemoryError: CUDA out of "
        r"memory. Tried to allocate 9 GiB.. Finished shards are kept",
    ):
        proposer.propose(prompts_of([picture(0), picture(1)], [0, 1]))
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_failure_names_the_images_in_hand(folders, monkeypatch):
    proposer = proposer_of(folders, "sam2", batch_images=2)
    encode = SamProposer.encode

    def fails(self, images):
        if any(image.size == (33, 64) for image in images):
            raise TypeError("no such image\nat all")
        return encode(self, images)

    monkeypatch.setattr(SamProposer, "encode", fails)
    images = [picture(n) for n in range(3)] + [picture(3, 33, 64)]
    with pytest.raises(
        ProposerFailed,
        match=r"^SAM failed on 2.jpg, 3.jpg: TypeError: no such image. Finished shards are kept",
    ):
        proposer.propose(prompts_of(images, [0, 1, 2, 3]))


def test_what_counts_as_out_of_memory():
    for error in (torch.OutOfMemoryError("x"), MemoryError(), RuntimeError("CUDA error: out of memory")):
        assert is_out_of_memory(error)
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not is_out_of_memory(RuntimeError("shapes differ")) and not is_out_of_memory(
        ValueError("out of memory")
    )


def test_resampling_by_hand():
    np.testing.assert_allclose(resampling(4, 1.0, 4), np.eye(4))
    np.testing.assert_allclose(resampling(4, 0.5, 2), [[1, 0, 0, 0], [0, 1, 0, 0]])
    weights = resampling(256, 0.6, 100)
    assert (weights[:, int(np.ceil(0.6 * 256)) :] == 0).all()
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-6)
    signal = torch.rand(1, 1, 1, 256, generator=torch.Generator().manual_seed(0))
    for grid in (64, 100, 300):
        want = F.interpolate(signal, (1, grid), mode="bilinear", antialias=True)[0, 0, 0]
        np.testing.assert_allclose(resampling(256, 1.0, grid) @ signal[0, 0, 0], want, atol=1e-5)


def test_bfloat16_encoding_is_near_float32(folders):
    prompts = prompts_of([picture(0)], [0, 0])
    exact = proposer_of(folders, "sam2").propose(prompts)
    rough = proposer_of(folders, "sam2", dtype="bfloat16").propose(prompts)
    assert 0 < np.abs(exact.map_BGG.astype(int) - rough.map_BGG).mean() < 8


def test_folders_of_another_kind_are_refused(folders, tmp_path):
    with pytest.raises(
        DataError, match=r"config.json: model_type is 'sam', proposer.kind=sam2 needs sam2 or"
    ):
        locate_proposer(ProposerConfig(kind="sam2", path=str(folders["sam"])))
    with pytest.raises(DataError, match="proposer.path is empty"):
        locate_proposer(ProposerConfig(kind="sam"))
    with pytest.raises(DataError, match="proposer.path: no folder './nowhere'"):
        locate_proposer(ProposerConfig(kind="sam", path="./nowhere"))


def test_weights_that_do_not_cover_the_model_are_refused(folders, tmp_path):
    for file in folders["sam2"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    gone = "mask_decoder.iou_token.weight"
    save_file(
        {name: value for name, value in tensors.items() if name != gone}, tmp_path / "model.safetensors"
    )
    with pytest.raises(DataError, match=f"lack 1 tensors of Sam2Model, first {gone}"):
        SamProposer(ProposerConfig(kind="sam2", path=str(tmp_path)), tmp_path)


def test_identity_names_the_weights(config, folders, tmp_path):
    with_sam = apply_overrides(config, [f"proposer.path={folders['sam2']}", "proposer.kind=sam2"])
    job = make_job(with_sam)
    assert len(job.identity["proposer"]["model"]["files"]) == 32
    assert job.proposer_folder == folders["sam2"]
    assert make_job(apply_overrides(with_sam, ["proposer.batch_images=1"])).fingerprint == job.fingerprint
    assert make_job(apply_overrides(with_sam, ["proposer.multimask=true"])).fingerprint != job.fingerprint
    other = save_random_sam2(tmp_path / "other", seed=1)
    assert make_job(apply_overrides(with_sam, [f"proposer.path={other}"])).fingerprint != job.fingerprint
    lacking = apply_overrides(config, ["proposer.kind=sam2"])
    assert "proposer.path is empty" in describe_plan(lacking)["problem"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_writes_the_masks_and_what_the_proposer_expects_of_them(config, folders, kind):
    chosen = apply_overrides(
        config, [f"proposer.path={folders[kind]}", f"proposer.kind={kind}", "splits=val,testA"]
    )
    path = run_priors(chosen, engine_factory=FakeEngine().factory, quiet=True)
    store = PriorStore(path)
    store.require_complete()
    expected = store.column("proposer_iou")
    assert np.isfinite(expected).all() and ((expected >= 0) & (expected <= 1)).all()
    assert np.isfinite(store.column("confidence")).all()
    assert len(np.unique(store.column("proposal"))) > 16
    scores = score_store(path)
    assert list(scores) == ["val", "testA"] and scores["val"]["box_miou"] is not None
    # Chunks of another size give the same rows, up to the last step of a probability.
    other = dataclasses.replace(
        chosen,
        cache_root=chosen.cache_root + "-2",
        engine=dataclasses.replace(chosen.engine, chunk_rows=7),
    )
    again = PriorStore(run_priors(other, engine_factory=FakeEngine().factory, quiet=True))
    assert again.attrs["fingerprint"] == store.attrs["fingerprint"]
    difference = store.column("proposal").astype(int) - again.column("proposal")
    assert np.abs(difference).max() <= 1


# ---- the committed weights ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def committed():
    config = ProposerConfig(kind="sam2", path=str(WEIGHTS_DIR), grid=64, own_process=False)
    proposer = PROPOSERS["sam2"].make(config, locate_proposer(config).folder)
    proposer.load()
    return proposer


@settings(max_examples=25, deadline=None)
@given(
    index=st.integers(0, 10_000),
    pick=st.integers(0, 100),
    width=st.integers(64, 400),
    height=st.integers(64, 400),
)
def test_a_box_is_answered_where_it_is(committed, index, pick, width, height):
    """Whatever the image's size and shape, the mask lies inside its box, on the object."""
    scene = draw_scene(rng("sam test", index))
    at = pick % len(scene.objects)
    image = Image.fromarray(scene.image_HW3).resize((width, height), Image.Resampling.BICUBIC)
    box = scene.boxes_xyxy_px[at] / 128
    prompts = Prompts(
        box_norm_B4=box[None].astype(np.float32), edges_B=(None,), names_B=(f"{index}",), images_B=(image,)
    )
    prob = committed.propose(prompts).map_BGG[0] / 255
    centre = (np.arange(64) + 0.5) / 64
    near = ((centre > box[0] - 0.04) & (centre < box[2] + 0.04))[None] & (
        (centre > box[1] - 0.04) & (centre < box[3] + 0.04)
    )[:, None]
    assert prob[near].sum() > 0.85 * prob.sum()
    y, x = (np.average(centre, weights=prob.sum(axis) + 1e-6) for axis in (1, 0))
    assert box[0] < x < box[2] and box[1] < y < box[3]


def test_the_committed_record_and_size():
    record = json.loads((WEIGHTS_DIR / "training.json").read_text())
    held_out = record["held_out"]
    assert (WEIGHTS_DIR / "model.safetensors").stat().st_size <= 10_000_000
    assert held_out["num"] >= 500
    assert held_out["tight"] > 0.8 > held_out["tight_box"] + 0.1
    assert held_out["jittered"] > 0.75 > held_out["jittered_box"] + 0.1
