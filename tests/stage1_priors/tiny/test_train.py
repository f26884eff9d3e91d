"""The training loop: schedules by hand, a resumed run equals an uninterrupted one, foreign checkpoints are refused."""

import dataclasses
import json

import pytest
import torch

from shared.errors import DataError
from stage1_priors.tiny.heads import LossConfig
from stage1_priors.tiny.model import TinyModelConfig
from stage1_priors.tiny.train import TrainConfig, Trainer, lr_scale, sigma_px, train

SMALL = TrainConfig(
    num_steps=4,
    num_ranks=1,
    scenes_per_rank=2,
    questions_per_scene=2,
    final_scenes=2,
    save_every=1,
    model=TinyModelConfig(num_vision_layers=1, num_text_layers=3),
)


def test_learning_rate_schedule_by_hand() -> None:
    config = TrainConfig(warmup=0.1, decay_from=0.5)
    values = [lr_scale(progress, config) for progress in (0.0, 0.05, 0.1, 0.5, 0.75, 1.0, 1.1)]
    assert values == pytest.approx([0, 0.5, 1, 1, 0.5, 0, 0])


def test_coordinate_targets_sharpen_geometrically() -> None:
    loss = LossConfig(sigma_start=4.0, sigma_end=1.0)
    assert [sigma_px(progress, loss) for progress in (0.0, 0.5, 1.0)] == pytest.approx([4, 2, 1])


def test_resume_equals_uninterrupted(tmp_path) -> None:
    whole = Trainer(SMALL, 0, tmp_path)
    for _ in range(4):
        whole.train_step()
    first = Trainer(SMALL, 0, tmp_path)
    for _ in range(2):
        first.train_step()
    first.save()
    second = Trainer(SMALL, 0, tmp_path)
    assert second.step == 2
    for _ in range(2):
        second.train_step()
    assert second.progress == whole.progress == 1
    for one, other in zip(whole.parameters, second.parameters, strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
def test_train_writes_a_folder_and_its_record(tmp_path, capsys) -> None:
    out = tmp_path / "weights"
    score = train(dataclasses.replace(SMALL, num_steps=2), out)
    record = json.loads((out / "training.json").read_text())
    assert record["held_out"] == dataclasses.asdict(score) and record["steps"] == 2
    assert "never on masks" in (out / "README.md").read_text()
    assert "acc@0.5" in capsys.readouterr().out
    assert not (tmp_path / "weights.training").exists()


def test_a_run_of_another_recipe_is_not_continued(tmp_path) -> None:
    (tmp_path / "weights.training").mkdir()
    (tmp_path / "weights.training" / "recipe.json").write_text('{"num_steps": 3}')
    with pytest.raises(DataError, match="another recipe"):
        train(SMALL, tmp_path / "weights")


def test_an_empty_run_is_refused() -> None:
    with pytest.raises(DataError):
        TrainConfig(num_steps=0)
    with pytest.raises(DataError):
        TrainConfig(minutes=-1.0)
