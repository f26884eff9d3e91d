"""Two workers with real engines on a CPU write the rows that one writes."""

import numpy as np
import pytest

from shared.config import apply_overrides
from shared.store.reader import PriorStore
from shared.store.verify import verify_store
from shared.synth.refshapes import write_refshapes
from stage1_priors.recipes import embedded
from stage1_priors.workers import run_workers

NUM_IMAGES = 110
"""Somewhat more than one shard of pairs, so that both workers have something to write."""


@pytest.mark.slow
@pytest.mark.vllm
def test_two_workers_write_what_one_writes(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    write_refshapes(tmp_path / "data", num_train_images=NUM_IMAGES, seed=3, progress=False)
    stores = []
    for num_workers in (1, 2):
        settings = [
            f"data.root={tmp_path / 'data'}",
            "splits=train",
            f"cache_root={tmp_path / f'cache-{num_workers}'}",
        ]
        arguments = ["embedded", *(part for one in settings for part in ("--set", one))]
        path = run_workers(apply_overrides(embedded(), settings), num_workers, arguments, quiet=True)
        assert verify_store(path)["ok"]
        stores.append(PriorStore(path))
    one, two = stores
    assert one.done_shards == two.done_shards == [0, 1]
    assert one.fingerprint == two.fingerprint
    # The engine's batches and threads differ, and with them the order of float32 sums: the last bits of its
    # log-probabilities. SAM has one thread and the same rows together in either run.
    nearly = {"confidence", "edge_logprob"}
    for name in one.fields:
        if name in nearly:
            np.testing.assert_allclose(one.column(name), two.column(name), atol=1e-4, err_msg=name)
        else:
            np.testing.assert_array_equal(one.column(name), two.column(name), name)
    assert len(np.unique(one.column("proposal"))) > 200
