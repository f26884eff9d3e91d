"""An array of workers over two nodes fills one store, whatever becomes of a worker or of Slurm on the way."""

import json

import pytest

from shared.store.reader import PriorStore
from tests.cluster.drawn import priors_recipe, settings
from tests.cluster.slurm import ENDED, NODES, wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def checksums(store, shard):
    return json.loads((store / "done" / f"{shard}.json").read_text())["body"]["files"]


def test_four_workers_one_of_them_queued_again_and_the_controller_killed(slurm, site, l2l, drawn, tmp_path):
    recipe = priors_recipe(drawn, tmp_path / "stores", "train")
    answer = l2l("submit", "priors", *recipe, "--tasks", 4, "--site", site)
    (array, verify), store = answer["jobs"], tmp_path / "stores" / answer["target"].rpartition("/")[2]
    assert array["tasks"] == [0, 1, 2, 3] and verify["name"] == "verify"
    assert slurm.state(verify["job"]) == "PENDING"

    task_file = store.with_suffix(".jobs") / "priors.1.json"
    wait_for(task_file.exists, "worker 1 has started", 120)
    assert l2l("status", store)["state"] == "running"
    slurm.call("scontrol", "requeue", f"{array['job']}_1")
    slurm.wait_for_state(f"{array['job']}_1", {"PENDING"}, 60)

    slurm.kill_controller()
    wait_for(lambda: any((store / "done").glob("*.json")), "a worker has ended without it", 240)
    slurm.start_controller()
    slurm.wait_for_state(verify["job"], ENDED, 500)
    assert slurm.state(verify["job"]) == "COMPLETED"

    status = l2l("status", store)
    assert status["state"] == "done" and status["progress"]["shards"] == "4 of 4"
    assert [task["restarts"] for task in status["tasks"]] == [0, 1, 0, 0, 0]
    assert {slurm.nodes(f"{array['job']}_{task}") for task in range(4)} == set(NODES)
    logs = [file.read_text() for file in store.with_suffix(".jobs").glob("priors.*.log")]
    assert sum(text.count(" pairs in ") for text in logs) == 4, "each shard was written once"
    reader = PriorStore(store)
    assert reader.is_complete and len(reader) == int(status["progress"]["rows"].partition(" of ")[2])
    assert l2l("submit", "priors", *recipe, "--site", site)["note"] == "done already, nothing to submit"

    before = checksums(store, 1)
    (store / "done" / "1.json").unlink()
    again = l2l("submit", "priors", *recipe, "--tasks", 3, "--site", site)["jobs"]
    assert again[0]["tasks"] == [1]
    slurm.wait_for_state(again[1]["job"], ENDED, 300)
    assert slurm.state(again[1]["job"]) == "COMPLETED"
    assert checksums(store, 1) == before


@pytest.mark.vllm
def test_the_embedded_recipe_through_vllm(slurm, site, l2l, drawn, tmp_path):
    values = {"data.root": drawn, "cache_root": tmp_path / "stores", "splits": "val"}
    answer = l2l("submit", "priors", "embedded", *settings(values), "--site", site)
    array, verify = answer["jobs"]
    assert array["tasks"] == [0], "no more workers than shards"
    slurm.wait_for_state(verify["job"], ENDED, 500)
    store = tmp_path / "stores" / answer["target"].rpartition("/")[2]
    status = l2l("status", store)
    assert status["state"] == "done", status
    reader = PriorStore(store)
    assert reader.is_complete and reader.attrs["fingerprint_fields"]["engine"]["kind"] == "vllm"
    assert (reader.column("proposal") != 127).any(), "nothing but absent priors"
