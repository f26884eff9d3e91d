"""What an export of labels has written before it ends: the same command, given again after a kill, goes on with it.

    FOLDER/labels.partial.jsonl    a header line, then the record of a sentence a line, in the order of the sentences

The header holds the export's identity (`identity_of_labels`), its batch and its limit. The records of a batch are
written at once, so a kill costs the batch that was under way, and may tear it: records count up to the last whole
batch, and what comes after them is cut off. Batches are those of an export that was not killed, since the last digits
of a network's answer may depend on what it is asked beside. So a file that was begun with another batch or limit is
refused, and so is one of another run. One without a whole header holds nothing and is begun anew. Not looked at: the
version of the code, the device, and images whose bytes the prior store does not know.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from shared.errors import DataError
from shared.json_files import object_of_line, read_json
from shared.model_files import hash_files
from shared.types import Sample
from stage2_train.checkpoint import list_checkpoints
from stage2_train.config import TrainConfig
from stage2_train.inputs import Inputs
from stage2_train.methods.base import Method
from stage2_train.predict_lines import hash_model
from stage2_train.run_identity import identity_of

PARTIAL = "labels.partial.jsonl"
"""Name of the file."""


def identity_of_labels(
    run: Path, config: TrainConfig, inputs: Inputs, method: Method, samples: Sequence[Sample]
) -> str:
    """32 hex digits of a hash over what the labels of a run are made of; not of where it lies.

    Args:
        run: The finished run.
        config: Its configuration.
        inputs: What it read, opened again.
        method: Its method; what that learnt is in the last checkpoint.
        samples: The sentences.
    """
    needed = {
        "ema.safetensors": config.ema.teacher and not config.ema.export,
        "method.pt": bool(method.state_dict()),
    }
    learnt = [name for name, is_needed in needed.items() if is_needed]
    checkpoint = list_checkpoints(run / "checkpoints")[-1] if learnt else run
    weak = inputs.weak_labels
    parts = {
        **identity_of(read_json(run / "config.json")),
        "network": hash_model(run / "model"),
        "learnt": hash_files(checkpoint / name for name in learnt),
        "annotations": inputs.dataset.fingerprint(),
        "store": (inputs.store or {}).get("fingerprint"),
        "weak_labels": None if weak is None else weak.read(samples).tolist(),
    }
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def take_over(
    path: Path, identity: str, samples: Sequence[Sample], *, batch: int, limit: int
) -> list[dict[str, Any]]:
    """The records of the whole batches that a file holds; the file ends with them afterwards, or with its header.

    Args:
        path: The file; begun if it is not there.
        identity: `identity_of_labels`.
        samples: The sentences of the export.
        batch: Sentences per pass.
        limit: As the user gave it.

    Raises:
        DataError: The file is of another export; it is as it was.
    """
    header = {"labels": identity, "batch": batch, "limit": limit}
    records: list[dict[str, Any]] = []
    kept, end = 0, 0
    if path.exists():
        with path.open("rb") as file:
            line = file.readline()
            if begun := object_of_line(line):
                _require_same(path, begun, header)
                end = size = len(line)
                for sample, line in zip(samples, file, strict=False):
                    record = object_of_line(line)
                    if (record.get("id"), record.get("sample_id")) != (len(records) + 1, sample.sample_id):
                        break
                    records.append(record)
                    size += len(line)
                    if len(records) % batch == 0 or len(records) == len(samples):
                        kept, end = len(records), size
    if end:
        os.truncate(path, end)
    else:
        path.write_bytes(_encoded(header))
    return records[:kept]


def append(file: BinaryIO, records: Sequence[Mapping[str, Any]]) -> None:
    """Write the records of a batch so that they survive the process."""
    file.write(b"".join(map(_encoded, records)))
    file.flush()


def _require_same(path: Path, begun: Mapping[str, Any], header: Mapping[str, Any]) -> None:
    remedy = "choose another folder (--out), or remove this file"
    if begun.get("labels") != header["labels"]:
        raise DataError(f"{path}: holds labels of another run; {remedy}")
    if dict(begun) != dict(header):
        batch, limit = begun.get("batch"), begun.get("limit")
        raise DataError(
            f"{path}: was begun with --batch {batch} --limit {limit}; give these to go on with it, or {remedy}"
        )


def _encoded(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value) + "\n").encode()
