"""The training loop: schedule and losses by hand, a resumed run equals an uninterrupted one."""

import dataclasses
import json

import pytest
import torch

from shared.errors import DataError
from stage1_priors.tiny_sam.model import TinySamConfig, build_model
from stage1_priors.tiny_sam.score import mask_losses
from stage1_priors.tiny_sam.train import TrainConfig, Trainer, lr_scale, run, train

SMALL = TrainConfig(
    num_steps=4,
    blind_steps=1,
    blind_boxes=2,
    scenes=1,
    boxes=2,
    multimask_every=2,
    final_scenes=2,
    model=TinySamConfig(hidden=8, decoder=32),
)


def test_learning_rate_schedule_by_hand():
    config = TrainConfig(warmup_steps=10, decay_from=0.5)
    values = [
        lr_scale(*at, config) for at in ((0, 0.0), (4, 0.1), (50, 0.5), (60, 0.75), (99, 1.0), (99, 1.1))
    ]
    assert values == pytest.approx([0.1, 0.5, 1, 0.5, 0, 0])


def test_losses_of_a_perfect_mask_are_small_and_the_best_of_several_counts():
    target = torch.zeros(1, 1, 64, 64)
    target[..., 10:30, 20:40] = 1
    perfect, nothing = (target * 2 - 1) * 20, torch.full((1, 1, 64, 64), -20.0)
    good, parts = mask_losses(perfect[:, :, None], torch.ones(1, 1, 1), target)
    assert good < 1e-3 and parts["iou"] == 0
    bad, parts = mask_losses(nothing[:, :, None], torch.ones(1, 1, 1), target)
    assert bad > 1 and parts["iou"] == 1  # expected an IoU of 1, it is 0
    both = torch.stack([nothing, perfect], 2)
    best, parts = mask_losses(both, torch.tensor([[[0.0, 1.0]]]), target)
    assert best == pytest.approx(float(good), abs=1e-6) and parts["iou"] == 0


def test_positions_are_encoded_alike_for_image_and_prompt():
    model = build_model(TinySamConfig(hidden=8, decoder=32), 0)
    prompt = model.prompt_encoder.shared_embedding.positional_embedding
    assert torch.equal(model.shared_image_embedding.positional_embedding, prompt)
    assert 0.3 < prompt.std() < 0.7


def test_resume_equals_uninterrupted(tmp_path):
    whole = Trainer(SMALL, tmp_path)
    for _ in range(4):
        whole.train_step()
    first = Trainer(SMALL, tmp_path)
    for _ in range(2):
        first.train_step()
    first.save()
    second = Trainer(SMALL, tmp_path)
    assert second.step == 2
    run(second)
    assert second.step == 4 and second.progress == whole.progress == 1
    for one, other in zip(whole.parameters, second.parameters, strict=True):
        assert torch.equal(one, other)


def test_train_writes_a_folder_and_its_record(tmp_path, capsys):
    out = tmp_path / "weights"
    score = train(dataclasses.replace(SMALL, num_steps=2), out)
    record = json.loads((out / "training.json").read_text())
    assert record["held_out"] == dataclasses.asdict(score) and record["steps"] == 2 and record["scenes"] == 1
    assert "the box itself, filled" in (out / "README.md").read_text()
    assert "held-out mean IoU" in capsys.readouterr().out
    assert not (tmp_path / "weights.training").exists()


def test_a_run_of_another_recipe_is_not_continued(tmp_path):
    (tmp_path / "weights.training").mkdir()
    (tmp_path / "weights.training" / "recipe.json").write_text('{"num_steps": 3}')
    with pytest.raises(DataError, match="another recipe"):
        train(SMALL, tmp_path / "weights")


def test_an_empty_run_is_refused():
    for bad in ({"num_steps": 0}, {"minutes": -1.0}, {"boxes": 0}, {"multimask_every": 1}):
        with pytest.raises(DataError):
            TrainConfig(**bad)
    with pytest.raises(DataError, match="do not fit together"):
        TinySamConfig(decoder=60)
