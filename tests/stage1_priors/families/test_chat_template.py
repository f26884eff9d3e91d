"""A model has to say how a question is put to it."""

import json
from pathlib import Path

import pytest

from shared.errors import DataError
from stage1_priors.families import require_chat_template


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("chat_template.jinja", "{{ messages }}"),
        ("chat_template.json", json.dumps({"chat_template": "{{ messages }}"})),
        ("tokenizer_config.json", json.dumps({"chat_template": "{{ messages }}"})),
        ("processor_config.json", json.dumps({"chat_template": "{{ messages }}"})),
    ],
)
def test_it_is_found_wherever_models_have_it(file: str, text: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(text)
    require_chat_template(tmp_path)


def test_a_model_without_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": None}))
    with pytest.raises(DataError, match="the model has no chat template .*chat_template.jinja"):
        require_chat_template(tmp_path)
