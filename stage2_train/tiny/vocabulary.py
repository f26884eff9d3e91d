"""WordPiece vocabulary of the embedded text tower: the words of drawn scenes whole, anything else by character."""

import json
import string
from pathlib import Path

from shared.synth.expressions import VOCABULARY

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

TOKENIZER_CONFIG = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 20}


def vocabulary() -> list[str]:
    """Tokens in id order: special ones, characters, continued characters, words."""
    characters = string.ascii_lowercase + string.digits + string.punctuation
    continued = [f"##{character}" for character in string.ascii_lowercase + string.digits]
    words = [word for word in VOCABULARY if len(word) > 1]
    return [*SPECIAL_TOKENS, *characters, *continued, *words]


def write_tokenizer(folder: Path) -> None:
    """Write `vocab.txt` and `tokenizer_config.json`, readable by transformers' BertTokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps(TOKENIZER_CONFIG, indent=2) + "\n", encoding="utf-8"
    )
