"""What the commands share: how an answer becomes text."""

from shared.console import text_of_mapping


def test_an_answer_in_words():
    values = {
        "complete": True,
        "known": False,
        "auroc": None,
        "reused": {},
        "answers": {"ok": 3},
        "shards": [],
        "rows": list(range(13)),
        "iou": 0.51239,
        "path": "a.zarr",
    }
    assert text_of_mapping(values).splitlines() == [
        "complete: yes",
        "known: no",
        "auroc: -",
        "reused: -",
        "answers:",
        "  ok: 3",
        "shards: -",
        "rows: 13 values, 0 .. 12",
        "iou: 0.5124",
        "path: a.zarr",
    ]
