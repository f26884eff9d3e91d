"""What a folder of model files is, told by its bytes and not by where it lies.

The files that count are those that the loaders of Transformers and vLLM read, by name: `WEIGHTS` (`OLD_WEIGHTS` where
there are none of these), `MODEL`, `TOKENIZER` and `PROCESSOR`. Whatever else lies beside them does not.

Weights may be large and are asked for at every start, so of a large file only samples are read (`hash_files`).
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO

from shared.errors import DataError

WEIGHTS = ("*.safetensors", "model.safetensors.index.json")
"""Weights, and which file holds which."""
OLD_WEIGHTS = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
"""The same where there are no safetensors."""
MODEL = (
    "config.json",
    "config.[0-9]*.json",  # for a version of Transformers
    "generation_config.json",
    "adapter_config.json",
    "hf_quant_config.json",
    "quant_config.json",
    "quantize_config.json",
)
"""What the network is, how it is quantised, and what ends an answer."""
TOKENIZER = (
    "tokenizer.json",
    "tokenizer.[0-9]*.json",  # for a version of Transformers
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "chat_template.json",
)
"""How text becomes tokens, and a chat becomes text."""
PROCESSOR = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
"""How an image becomes numbers."""
WHOLE_FILE_BYTES = 64 * 2**20
"""Files up to this size are hashed whole; of larger ones size, first and last MiB, and samples between."""
SAMPLE_BYTES = 4096
"""Read at the start, in the middle and at the end of every tensor of a large file: training moves nearly all numbers of
the tensors that it moves at all."""


def model_files(folder: Path) -> list[Path]:
    """The files of a folder that can change what its model gives, by name."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    has_safetensors = any(path.suffix == ".safetensors" for path in files)
    names = (*(WEIGHTS if has_safetensors else OLD_WEIGHTS), *MODEL, *TOKENIZER, *PROCESSOR)
    return [path for path in files if any(fnmatchcase(path.name, name) for name in names)]


def hash_model_files(folder: Path) -> str:
    """Hash of the files of a whole model, 32 hex digits.

    Raises:
        DataError: The folder holds no `config.json` or no safetensors.
    """
    files = model_files(folder)
    names = {path.name for path in files}
    if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
        raise DataError(f"{folder}: not a model folder (config.json and *.safetensors are needed)")
    return hash_files(files)


def hash_files(files: Iterable[Path]) -> str:
    """Hash of the names and contents of files, 32 hex digits; not of where they lie."""
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name}\x1f{size}\x1f".encode())
        with path.open("rb") as file:
            if size <= WHOLE_FILE_BYTES:
                digest.update(file.read())
            else:
                for start, length in _sampled(file, size):
                    file.seek(start)
                    digest.update(file.read(length))
    return digest.hexdigest()


def _sampled(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    """(start, length) of the parts of a large file that are hashed: both ends, and three places of each tensor.

    A file without a safetensors header is sampled at 4,096 places.
    """
    try:
        file.seek(0)
        header_bytes = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_bytes)) if header_bytes < size else {}
        spans = sorted(tensor["data_offsets"] for name, tensor in header.items() if name != "__metadata__")
        data = 8 + header_bytes
        spans = [(data + start, data + end) for start, end in spans]
    except (ValueError, KeyError, TypeError, AttributeError):
        spans = []
    if not spans:
        spans = [(size * part // 1365, size * (part + 1) // 1365) for part in range(1365)]
    yield from ((0, 2**20), (size - 2**20, 2**20))
    for start, end in spans:
        last = max(start, end - SAMPLE_BYTES)
        for place in (start, (start + last) // 2, last):
            yield place, min(SAMPLE_BYTES, end - start)
