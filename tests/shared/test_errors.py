"""Messages: a word that nearly is a known one, and values cut to one line."""

from shared.errors import meant, short


def test_a_word_that_resembles_a_known_one():
    known = ["embedded", "embedded-confident", "paper"]
    assert meant("papre", known) == "; is 'paper' meant?"
    assert meant("embeded", known) == "; is 'embedded' meant?"
    assert meant("zzz", known) == "" and meant("", known) == "" and meant("x", []) == ""


def test_a_long_value_is_cut():
    assert short("abc") == "'abc'" and short("x" * 100) == "'" + "x" * 76 + "..."
