"""Every family of towers learns the same from a batch of four, however it is cut.

Batch norms are left out, by `decoder_norm="group"`: they see one micro-batch of one process. On GPUs `train` exchanges
them for `SyncBatchNorm`, which sees all processes; torch refuses it on a CPU.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from shared.runlog import read_records
from tests.invariants.tower_processes import TOWERS, run_all, write_word_tokenizer

TOLERANCE = 1e-5
"""Float32 sums in another order, after one step; AdamW makes whole steps of rounding later (`test_processes`)."""


@pytest.mark.slow
def test_every_tower_learns_alike_on_two_processes_and_in_micro_batches(
    mini_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = write_word_tokenizer(tmp_path / "words")
    run_all(mini_root, words, tmp_path / "one")
    run_all(mini_root, words, tmp_path / "one", accumulation=2)
    here = Path(__file__).parents[2]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d",
        "--rdzv-endpoint=127.0.0.1:0", "-m", "tests.invariants.tower_processes", str(mini_root), str(words),
        str(tmp_path / "two"),
    ]  # fmt: skip
    for name, value in {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(here), "PYTHONWARNINGS": "ignore"}.items():
        monkeypatch.setenv(name, value)
    finished = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr[-3000:]
    for vision, text in TOWERS:
        (whole,) = read_records(tmp_path / "one" / f"{vision}-{text}-1" / "metrics.jsonl")
        for cut in (f"one/{vision}-{text}-2", f"two/{vision}-{text}-1", f"two/{vision}-{text}-2"):
            (parts,) = read_records(tmp_path / cut / "metrics.jsonl")
            for name in ("loss", "labelled_loss", "unlabelled_loss", "grad_norm", "tau_fg", "reward"):
                assert whole[name] == pytest.approx(parts[name], rel=TOLERANCE, abs=TOLERANCE), (cut, name)
