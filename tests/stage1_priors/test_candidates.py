"""Candidates of an image: the rule by hand, the model's own road, one look an image, and what a store keeps of them."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from shared.config import apply_overrides
from shared.errors import DataError
from shared.masks import resize_mask_nearest
from shared.seeding import rng
from shared.store.reader import PriorStore
from shared.store.verify import repair_store, verify_store
from shared.synth.scenes import draw_scene
from stage1_priors.candidates import choose, prompt_boxes, prompt_points
from stage1_priors.config import CandidatesConfig, ProposerConfig
from stage1_priors.job import make_job
from stage1_priors.proposals import NO_PRIOR
from stage1_priors.proposers import Prompts
from stage1_priors.recipes import embedded
from stage1_priors.run import run_priors
from stage1_priors.sam import SamProposer, stability
from stage1_priors.tiny_sam import WEIGHTS_DIR
from tests.stage1_priors.fake_engine import FakeEngine
from tests.stage1_priors.sam_folders import save_random_sam, save_random_sam2

KINDS = ("sam2", "sam")
ALL = {"min_iou": 0.0, "min_stability": 0.0}
"""Random weights promise nothing."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("sam")
    return {"sam2": save_random_sam2(root / "sam2"), "sam": save_random_sam(root / "sam")}


def proposer_of(folders, kind, **fields):
    candidates = CandidatesConfig(**{"num": 6, "side": 16, "points_per_side": 3, **ALL, **fields})
    config = ProposerConfig(kind=kind, path=str(folders[kind]), grid=16, candidates=candidates)
    return SamProposer(config, folders[kind])


def picture(seed, width=96, height=48):
    return Image.fromarray(rng("picture", seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def prompts_of(images, has_box):
    boxes = np.tile(np.array([0.2, 0.2, 0.7, 0.7], np.float32), (len(images), 1))
    boxes[~np.array(has_box)] = np.nan
    names = tuple(f"{id(image)}.jpg" for image in images)
    return Prompts(box_norm_B4=boxes, edges_B=(None,) * len(images), names_B=names, images_B=tuple(images))


def test_prompts_by_hand():
    config = CandidatesConfig(points_per_side=2, box_sides=(0.5, 1.0))
    assert prompt_points(config).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    boxes = prompt_boxes(config)
    assert boxes[:2].tolist() == [[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5]]
    assert boxes[4].tolist() == [0, 0, 0.75, 0.75] and len(boxes) == 8


def masks_by_hand():
    soft = np.zeros((6, 4, 4), np.uint8)
    soft[0, 0] = 200  # the upper row
    soft[1, :2] = 255  # the upper half
    soft[2, 0, :3] = 255  # most of the upper row: IoU 3/4 with it
    soft[3] = 127  # nothing reaches one half
    soft[4, 3] = 128  # the lower row
    soft[5, 0] = 255  # the upper row again
    return soft


def test_the_best_by_expected_iou_are_kept_and_none_twice():
    soft, iou = masks_by_hand(), np.array([0.9, 0.95, 0.91, 0.99, 0.5, 0.9001])
    config = CandidatesConfig(num=9, same_iou=0.7)
    assert choose(soft, iou, config) == [1, 2, 4]
    assert choose(soft, iou, dataclasses.replace(config, num=2)) == [1, 2]
    # With the third allowed beside it, the first goes before its equal: to three decimals they tie.
    assert choose(soft, iou, dataclasses.replace(config, same_iou=0.75)) == [1, 2, 0, 4]
    assert choose(soft[:0], iou[:0], config) == []


def test_prompted_by_boxes_what_many_found_comes_first():
    soft, iou = masks_by_hand(), np.linspace(0, 1, 6)
    config = CandidatesConfig(num=9, same_iou=0.7, prompts="boxes")
    # The upper row was found three times; the sixth mask and the third say so with certainty, the first with 200/255.
    assert choose(soft, iou, config) == [2, 1, 4]
    assert choose(soft[[0, 5, 2]], iou[:3], config) == [1]


def test_stability_by_hand():
    logit = torch.tensor([[[3.0, 0.5], [-0.5, -3.0]], [[-9.0, -9.0], [-9.0, -9.0]]])
    assert stability(logit, 1.0).tolist() == [pytest.approx(1 / 3), 0]
    assert stability(logit, 0.4).tolist() == [1, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_looked_at_once_for_boxes_and_candidates(folders, kind):
    proposer = proposer_of(folders, kind)
    seen = []
    proposer._model.vision_encoder.register_forward_hook(
        lambda module, inputs, output: seen.append(len(output.last_hidden_state))
    )
    first, second = picture(0), picture(1)
    found = proposer.propose(prompts_of([first, first, second], [True, False, False]))
    rest = prompts_of([second, second], [True, False])  # a chunk ended within an image
    again = proposer.propose(dataclasses.replace(rest, continues=True))
    assert sum(seen) == 2
    assert found.candidates_BMGG.shape == (3, 6, 16, 16) and found.candidates_BMGG.any((1, 2, 3)).all()
    assert (found.candidates_BMGG[0] == found.candidates_BMGG[1]).all()
    assert (found.candidates_BMGG[0] != found.candidates_BMGG[2]).any()
    assert (again.candidates_BMGG == found.candidates_BMGG[2]).all()
    assert (found.map_BGG[1:] == NO_PRIOR).all()  # no box: candidates say nothing of the sentence


def test_no_image_no_candidates(folders):
    proposer = proposer_of(folders, "sam2")
    found = proposer.propose(prompts_of([picture(0), None], [True, True])).candidates_BMGG
    assert found[0].any() and not found[1].any()
    none = proposer_of(folders, "sam2", min_iou=1.0).propose(prompts_of([picture(0)], [True]))
    assert not none.candidates_BMGG.any()


def test_not_asked_for_there_are_none_and_boxes_are_answered_alike(folders):
    prompts = prompts_of([picture(0), picture(0, 50)], [True, False])
    without = proposer_of(folders, "sam2", num=0).propose(prompts)
    with_them = proposer_of(folders, "sam2").propose(prompts)
    assert without.candidates_BMGG is None
    assert np.abs(without.map_BGG.astype(int) - with_them.map_BGG).max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_masks_of_a_point_are_those_of_transformers_own_road(folders, kind):
    """Point through the processor, image and point through the model at once."""
    proposer, image = proposer_of(folders, kind, points_per_side=1, num=3, same_iou=1.0), picture(5)
    found = proposer.propose(prompts_of([image], [False])).candidates_BMGG[0]
    processor, model = proposer._processor, proposer._model
    points = [[[[48.0, 24.0]]]] if kind == "sam2" else [[[48.0, 24.0]]]
    labels = [[[1]]] if kind == "sam2" else [[1]]
    inputs = processor(images=image, input_points=points, input_labels=labels, return_tensors="pt")
    with torch.no_grad():
        output = model(
            pixel_values=inputs["pixel_values"],
            input_points=inputs["input_points"].float().reshape(1, 1, 1, 2),
            input_labels=torch.ones(1, 1, 1, dtype=torch.int64),
            multimask_output=True,
        )
    # The image is twice as wide as high: it fills SAM's square down to the middle, and SAM 2's wholly.
    prob = output.pred_masks[0].sigmoid()[:, :, : 16 if kind == "sam" else None]
    want = F.interpolate(prob, (16, 16), mode="bilinear", antialias=True)[0].numpy()
    expected = output.iou_scores[0, 0].numpy()
    kept = [k for k in np.argsort(-expected) if expected[k] >= 0 and (np.rint(want[k] * 255) >= 128).any()]
    assert kept and not found[len(kept) :].any()
    np.testing.assert_allclose(found[: len(kept)] / 255, want[kept], atol=0.6 / 255)


def best_iou(candidates_MGG, masks_KHW):
    hard = candidates_MGG >= 128
    best = []
    for mask in masks_KHW:
        truth = resize_mask_nearest(mask, hard.shape[1:])
        inter, union = (hard & truth).sum((1, 2)), (hard | truth).sum((1, 2))
        best.append((inter / np.maximum(union, 1)).max())
    return best


def test_the_embedded_model_finds_the_objects_of_a_scene():
    asked = dataclasses.replace(embedded().proposer.candidates, num=16)
    config = ProposerConfig(kind="sam2", path=str(WEIGHTS_DIR), candidates=asked)
    scenes = [draw_scene(rng("candidates test", index)) for index in range(10)]
    prompts = prompts_of([Image.fromarray(scene.image_HW3) for scene in scenes], [False] * len(scenes))
    found = SamProposer(config, WEIGHTS_DIR).propose(prompts).candidates_BMGG
    own = np.mean([iou for at, one in enumerate(scenes) for iou in best_iou(found[at], one.masks_KHW)])
    other = np.mean([iou for at, one in enumerate(scenes) for iou in best_iou(found[at - 1], one.masks_KHW)])
    squares = np.zeros((len(prompt_boxes(asked)), 64, 64), np.uint8)
    for mask, box in zip(squares, np.rint(prompt_boxes(asked) * 64).astype(int), strict=True):
        mask[box[1] : box[3], box[0] : box[2]] = 255
    boxes = np.mean([iou for scene in scenes for iou in best_iou(squares, scene.masks_KHW)])
    assert own > 0.7 > max(other, boxes) + 0.1


# ---- in a store ---------------------------------------------------------------------------------------------------


@pytest.fixture
def with_candidates(config, folders):
    chosen = [
        f"proposer.path={folders['sam2']}", "proposer.kind=sam2", "proposer.candidates.num=4",
        "proposer.candidates.side=8", "proposer.candidates.points_per_side=2", "proposer.candidates.min_iou=0",
        "proposer.candidates.min_stability=0", "splits=train,val",
    ]  # fmt: skip
    return apply_overrides(config, chosen)


def run(config):
    return run_priors(config, engine_factory=FakeEngine().factory, quiet=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_keeps_an_images_candidates_once_a_shard(with_candidates, folders, kind):
    path = run(apply_overrides(with_candidates, [f"proposer.path={folders[kind]}", f"proposer.kind={kind}"]))
    store = PriorStore(path)
    assert store.fields["candidates"].row_shape == (4, 8, 8)
    images, held = store.column("image_id"), store.column("candidates").any((1, 2, 3))
    for shard in range(-(-store.num_rows // 512)):
        rows = range(shard * 512, min((shard + 1) * 512, store.num_rows))
        first = {images[row]: row for row in reversed(rows)}
        keepers = set(np.flatnonzero(held[rows.start : rows.stop]) + rows.start)
        assert keepers <= set(first.values()) and len(keepers) > len(first) / 2
        assert kind == "sam" or len(keepers) == len(first)  # random SAM weights find nothing in some images
    assert shard >= 1 and images[511] == images[512]  # an image with rows in two shards
    np.testing.assert_array_equal(
        store.batch("candidates", [512])[0],
        store.batch("candidates", [int(np.flatnonzero(images == images[512])[0])])[0],
    )


def test_a_broken_byte_is_found_and_the_shard_written_again(with_candidates):
    path = run(with_candidates)
    before = PriorStore(path).column("candidates")
    file = path / "candidates" / "c.1.0.0.0"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    found = verify_store(path)
    assert found["bad_shards"] == [1] and "candidates" in found["problems"][0]
    repair_store(path, found["bad_shards"])
    engine = FakeEngine()
    run_priors(with_candidates, engine_factory=engine.factory, quiet=True)
    assert verify_store(path)["ok"] and 0 < engine.num_requests < PriorStore(path).num_rows
    after = PriorStore(path).column("candidates")
    assert (before.any((2, 3)) == after.any((2, 3))).all()
    assert np.abs(before.astype(int) - after).max() <= 1


def test_the_fingerprint_names_them_only_if_there_are_any(with_candidates):
    job = make_job(with_candidates)
    none = make_job(apply_overrides(with_candidates, ["proposer.candidates.num=0"]))
    assert "candidates" not in none.identity["proposer"]
    idle = ["proposer.candidates.num=0", "proposer.candidates.side=16"]
    assert make_job(apply_overrides(with_candidates, idle)).fingerprint == none.fingerprint
    others = [
        "num=3", "side=16", "prompts=boxes", "points_per_side=3", "box_sides=0.5", "min_iou=0.5", "min_stability=0.5",
        "stability_offset=2", "same_iou=0.5",
    ]  # fmt: skip
    assert {other.partition("=")[0] for other in others} == set(CandidatesConfig.__dataclass_fields__)
    changed = [
        make_job(apply_overrides(with_candidates, [f"proposer.candidates.{other}"])).fingerprint
        for other in others
    ]
    assert changed[others.index("box_sides=0.5")] == job.fingerprint  # points are prompted with
    assert len({job.fingerprint, none.fingerprint, *changed}) == 1 + len(others)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num": -1}, "proposer.candidates.num is -1"),
        ({"side": 0}, "proposer.candidates.side is 0"),
        ({"min_iou": 1.5}, "proposer.candidates.min_iou is 1.5"),
        ({"box_sides": (0.2, 0.0)}, r"proposer.candidates.box_sides\[1\] is 0.0"),
        ({"prompts": "boxes", "box_sides": ()}, "box_sides is empty"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(DataError, match=message):
        CandidatesConfig(**changes)


def test_only_sam_makes_candidates():
    with pytest.raises(DataError, match="proposer.kind=soft-box makes no candidates; use sam2 or sam"):
        ProposerConfig(candidates=CandidatesConfig(num=3))
