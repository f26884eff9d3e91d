"""Fields and text rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import DataError
from shared.store import schema
from shared.store.schema import (
    STATIC_PRIOR_FIELDS,
    FieldSpec,
    decode_text_rows,
    encode_text_rows,
    prior_fields,
)


def test_prior_fields_have_the_agreed_names_types_and_shapes():
    got = {spec.name: (spec.dtype, spec.row_shape, spec.chunk) for spec in prior_fields(64)}
    assert got == {
        "sample_id": ("uint8", (96,), "shard"),
        "expression": ("uint8", (256,), "shard"),
        "image_id": ("int64", (), "shard"),
        "split": ("uint8", (), "shard"),
        "image_hw": ("int32", (2,), "shard"),
        "raw_text": ("uint8", (512,), "shard"),
        "status": ("uint8", (), "shard"),
        "proposal": ("uint8", (64, 64), "row"),
        "box_xyxy_norm": ("float32", (4,), "shard"),
        "box_raw_xyxy": ("float32", (4,), "shard"),
        "processed_hw": ("int32", (2,), "shard"),
        "confidence": ("float32", (), "shard"),
        "edge_logprob": ("float32", (4,), "shard"),
        "num_tokens": ("int32", (), "shard"),
        "proposer_iou": ("float32", (), "shard"),
    }
    assert set(STATIC_PRIOR_FIELDS) <= set(got)


def test_a_field_survives_its_json_form():
    for spec in prior_fields(7, compress_proposal=True):
        assert FieldSpec.from_dict(spec.to_dict()) == spec


@pytest.mark.parametrize(
    "bad",
    [
        {"name": "Upper", "dtype": "uint8"},
        {"name": "a/b", "dtype": "uint8"},
        {"name": "done", "dtype": "uint8"},
        {"name": "x", "dtype": "object"},
        {"name": "x", "dtype": "uint8", "row_shape": (0,)},
        {"name": "x", "dtype": "uint8", "chunk": "whole"},
    ],
)
def test_impossible_fields_are_refused(bad):
    with pytest.raises(DataError, match=bad["name"]):
        FieldSpec(**bad)


def test_text_is_cut_at_a_whole_character():
    rows = encode_text_rows(["aé", "éé", "日本"], 3)
    assert rows.shape == (3, 3)
    assert decode_text_rows(rows) == ["aé", "é", "日"]
    assert decode_text_rows(encode_text_rows(["日本"], 5)) == ["日"]


def test_text_that_cannot_be_held_is_marked_not_lost():
    assert decode_text_rows(encode_text_rows(["a\0b", "\ud800"], 8)) == ["a\ufffdb", "\ufffd"]


def test_strict_text_refuses_to_be_cut_and_names_the_row():
    with pytest.raises(DataError, match=r"row 1: text 'abcd'"):
        encode_text_rows(["abc", "abcd"], 3, strict=True)


@pytest.mark.parametrize("text", ["a\0b", "a\0", "a\ud800"])
def test_strict_text_refuses_to_be_changed_though_it_fits(text):
    with pytest.raises(DataError, match="row 0: .* unchanged"):
        encode_text_rows([text], 8, strict=True)


def test_blanks_around_a_text_are_its_own():
    texts = [" a ", "\tb\n", "\u3000"]
    assert decode_text_rows(encode_text_rows(texts, 8, strict=True)) == texts


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)))
def test_text_that_fits_survives(texts):
    assert decode_text_rows(encode_text_rows(texts, 80)) == texts


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), st.integers(1, 12))
def test_cut_text_is_a_prefix(text, width):
    (got,) = decode_text_rows(encode_text_rows([text], width))
    assert text.startswith(got)
    assert got == text or len((got + text[len(got)]).encode()) > width


def test_the_first_row_of_an_image_by_hand(monkeypatch):
    monkeypatch.setattr(schema, "SHARD_ROWS", 4)
    images = np.array([7, 7, 5, 7, 7, 5, 5, 7, 5])
    assert schema.first_rows(images).tolist() == [0, 0, 2, 0, 4, 5, 5, 4, 8]
    assert schema.first_rows(images[:0]).tolist() == []


def test_candidates_are_a_field_only_if_asked_for():
    assert schema.candidate_fields(0, 64) == ()
    (spec,) = schema.candidate_fields(3, 8)
    assert (spec.row_shape, spec.chunk, spec.compress) == ((3, 8, 8), "row", True)
    with pytest.raises(DataError, match="side 5000 of candidates is outside"):
        schema.candidate_fields(3, 5000)
