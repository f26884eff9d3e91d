"""Pretraining learns, in one process and in two, and what it writes loads."""

import json
from pathlib import Path

import torch

from shared.synth.expressions import VOCABULARY
from stage2_train.segmentor import WEIGHTS_NAME, build_segmentor
from stage2_train.segmentor_config import EMBEDDED_FOLDER, PARTS, tiny_config
from stage2_train.segmentor_weights import load_pretrained
from stage2_train.text import Tokenizer
from stage2_train.tiny.train import PretrainConfig, owners, pretrain, rate_scale
from stage2_train.tiny.vocabulary import vocabulary, write_tokenizer


def test_schedule_rises_stays_and_falls() -> None:
    config = PretrainConfig(out=Path("."), steps=100, warmup=0.1, decay=0.5)
    scales = [rate_scale(step, config) for step in range(100)]
    assert scales[0] == 0.1 and scales[10] == scales[49] == 1.0 and 0 < scales[99] < 0.03


def test_owners_share_the_work() -> None:
    matrices = [torch.nn.Parameter(torch.zeros(8, 8)) for _ in range(6)]
    assert sorted(owners(matrices, 2)) == [0, 0, 0, 1, 1, 1]
    assert owners(matrices, 1) == [0] * 6


def test_a_short_run_writes_weights_that_load(tmp_path: Path) -> None:
    config = PretrainConfig(
        out=tmp_path,
        steps=2,
        scenes=8,
        images=2,
        phrases=2,
        held_out=3,
        ranks=1,
        log_every=1,
        save_seconds=1e9,
    )
    threads = torch.get_num_threads()
    pretrain(config)
    torch.set_num_threads(threads)
    model = build_segmentor(tiny_config(weights=None))
    load_pretrained(model, tmp_path / WEIGHTS_NAME, PARTS[:4])
    record = json.loads((tmp_path / "pretraining.json").read_text(encoding="utf-8"))
    assert record["step"] == 2 and 0 <= record["held_out"]["oiou"] <= 1


def test_shipped_vocabulary_is_the_generated_one(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    for name in ("vocab.txt", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (EMBEDDED_FOLDER / name).read_bytes()


def test_every_scene_word_is_one_token() -> None:
    ids, mask = Tokenizer(tiny_config(weights=None))(list(VOCABULARY))
    assert ids.shape[1] == 3 and bool(mask.all())
    assert len(set(ids[:, 1].tolist())) == len(VOCABULARY) and len(set(vocabulary())) == len(vocabulary())
