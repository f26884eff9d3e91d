"""What a tokenizer cannot read is counted and said once."""

import dataclasses

import pytest

from stage2_train.dry_run import describe
from stage2_train.predict import predict_one
from stage2_train.predict_lines import predict_jsonl
from stage2_train.segmentor_config import tiny_config
from stage2_train.text import Tokenizer, say_unread
from stage2_train.train import train
from tests.stage2_train.miniature import mini_config, random_image, segmentor_config


@pytest.fixture(scope="module")
def embedded():
    return Tokenizer(tiny_config())


def test_words_that_are_spelled_out_or_unknown_are_counted(embedded):
    found = embedded.unread(["the red star, left", "The mug!", "a blue ring # 7 ° größer", "..."])
    assert (found.num_words, found.num_unknown, found.num_cut) == (
        12,
        3,
        0,
    )  # mug is spelled, ° and größer unknown
    assert found.note() == "25.0% of the words are unknown to the tokenizer (spelled in letters, or [UNK])"


def test_a_vocabulary_without_letters(mini_root):
    found = Tokenizer(segmentor_config(mini_root / "tokenizer")).unread(["red mug", "star"])
    assert (found.num_words, found.num_unknown) == (3, 1)


def test_long_sentences_are_counted_with_their_special_tokens(embedded):
    fits = " ".join(["red"] * 18)
    found = embedded.unread([fits, fits + " red", "red"])
    assert embedded.max_tokens == 20 and found.num_cut == 1
    assert found.note() == "1 of 3 sentences are longer than 20 tokens and are cut"
    ids, _ = embedded([fits + " red"])
    assert ids.shape == (1, 20)


def test_next_to_nothing_lost_is_no_note(embedded, capsys):
    for sentences in (["red star"] * 100 + ["mug"], [], [""], ["red star"]):
        assert embedded.unread(sentences).note() == ""
        say_unread(embedded, sentences)
    assert capsys.readouterr() == ("", "")


def test_of_many_sentences_evenly_spaced_ones_are_looked_at(embedded, monkeypatch):
    monkeypatch.setattr("stage2_train.text.MAX_LOOKED_AT", 10)
    found = embedded.unread(["mug", "red"] * 10 + ["red"])
    assert (found.num_all, found.num_sentences) == (21, 10) and 0 < found.num_unknown <= 10
    assert found.note().endswith("; of 21 sentences 10, evenly spaced, were looked at")
    assert embedded.unread(["mug"] * 10).note().count(";") == 0


def note_in(err):
    return [line for line in err.splitlines() if "unknown to the tokenizer" in line or "are cut" in line]


def test_training_its_plan_and_prediction_say_it_once(mini_root, mini_run, tmp_path, capfd):
    config = mini_config(mini_root, steps=1)
    describe(config)
    assert note_in(capfd.readouterr().err) == []
    text = dataclasses.replace(config.segmentor.text, max_tokens=4)
    short = dataclasses.replace(config, segmentor=dataclasses.replace(config.segmentor, text=text))
    describe(short)
    (planned,) = note_in(capfd.readouterr().err)
    assert planned.startswith("note: ") and planned.endswith("sentences are longer than 4 tokens and are cut")
    train(short, tmp_path / "run", quiet=True)
    assert note_in(capfd.readouterr().err) == [planned]
    gone = dataclasses.replace(config.segmentor.text, tokenizer="owner/bert")
    gone_config = dataclasses.replace(config, segmentor=dataclasses.replace(config.segmentor, text=gone))
    assert describe(gone_config)["pretrained"]["segmentor.text.tokenizer"].startswith("NOT FOUND")
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "vocab.txt").write_text("red\n")  # which is for `bert` alone
    other = dataclasses.replace(config.segmentor.text, kind="siglip", tokenizer=str(tmp_path / "words"))
    other_config = dataclasses.replace(config, segmentor=dataclasses.replace(config.segmentor, text=other))
    said = describe(other_config)["pretrained"]["segmentor.text.tokenizer"]
    assert said.startswith("NOT FOUND") and "no tokenizer.json" in said

    random_image().save(tmp_path / "a.png")
    predict_one(mini_run, tmp_path / "a.png", "red mug", tmp_path / "out")
    said = "note: 50.0% of the words are unknown to the tokenizer (spelled in letters, or [UNK])"
    assert note_in(capfd.readouterr().err) == [said]
    (tmp_path / "p.jsonl").write_text('{"image": "a.png", "expression": "red mug"}\n{"image": "a.png"}\n' * 3)
    predict_jsonl(mini_run, tmp_path / "p.jsonl", tmp_path / "out", batch=1)
    assert note_in(capfd.readouterr().err) == [said]
