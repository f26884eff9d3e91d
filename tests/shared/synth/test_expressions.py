"""Expressions: an independent interpreter must find exactly the object meant."""

from collections import Counter

import pytest

from shared.errors import DataError
from shared.seeding import rng
from shared.synth.expressions import FLAVOURS, KINDS, VOCABULARY, describe
from shared.synth.scenes import draw_scene
from tests.shared.synth.interpreter import PLACE, RELATIONS, candidates, meant

NUM_SCENES = 150


@pytest.fixture(scope="module", params=FLAVOURS)
def described(request):
    rows = []
    for number in range(NUM_SCENES):
        scene = draw_scene(rng("test expressions", number))
        for index in range(len(scene.objects)):
            for expression in describe(scene, index, request.param, rng("words", number, index), num=3):
                rows.append((scene, index, expression))
    return request.param, rows


def test_every_expression_means_exactly_its_object(described):
    _, rows = described
    assert len(rows) > 3 * NUM_SCENES
    for scene, index, expression in rows:
        assert meant(scene, expression.text) == [index], expression


def test_the_interpreter_can_say_no():
    scene = draw_scene(rng("test expressions", 0))
    assert len(meant(scene, "object")) == len(scene.objects)
    absent = next(c for c in ("red", "blue", "green", "pink") if not candidates(scene, c))
    assert meant(scene, f"{absent} object") == []


def test_words_are_in_the_vocabulary_and_kinds_are_known(described):
    _, rows = described
    assert {word for _, _, e in rows for word in e.text.split()} <= set(VOCABULARY)
    assert {e.kind for _, _, e in rows} <= set(KINDS)


def test_flavours_mirror_the_real_sets(described):
    flavour, rows = described
    kinds = Counter(e.kind for _, _, e in rows)
    words = [len(e.text.split()) for _, _, e in rows]
    if flavour == "refshapes+":
        assert set(kinds) == {"attribute", "superlative"}
        assert not any(word in PLACE for _, _, e in rows for word in e.text.split())
    elif flavour == "refshapes":
        assert kinds["location"] > 0.3 * len(rows) and kinds["relation"] == 0
        assert sum(words) / len(words) < 5
    else:
        assert kinds["relation"] > 0.3 * len(rows)
        assert sum(words) / len(words) > 6
        assert all(any(r in e.text for r in RELATIONS) for _, _, e in rows if e.kind == "relation")


def test_expressions_differ_and_repeat_with_their_generator():
    scene = draw_scene(rng("test expressions", 3))
    texts = [e.text for e in describe(scene, 0, "refshapes", rng("w"), num=3)]
    assert len(set(texts)) == len(texts)
    assert texts == [e.text for e in describe(scene, 0, "refshapes", rng("w"), num=3)]


def test_unknown_flavour_is_named():
    with pytest.raises(DataError, match="refcoco"):
        describe(draw_scene(rng(0)), 0, "refcoco", rng(0))
