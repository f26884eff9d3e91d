"""An array of workers over two nodes fills one store, whatever becomes of a worker or of Slurm on the way."""

import json
from pathlib import Path

import pytest

from shared.store.reader import PriorStore
from stage1_priors.recipes import TINY_WEIGHTS
from tests.cluster.drawn import priors_recipe, settings
from tests.cluster.slurm import ENDED, NODES, wait_for
from tests.hub_server import serve_hub

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
    assert again[0]["tasks"] == [0], "no more workers than missing shards"
    slurm.wait_for_state(again[1]["job"], ENDED, 300)
    assert slurm.state(again[1]["job"]) == "COMPLETED"
    assert checksums(store, 1) == before


def test_a_worker_given_notice_writes_what_it_has_in_hand_and_is_queued_again(
    slurm, site, l2l, drawn, tmp_path
):
    recipe = priors_recipe(drawn, tmp_path / "stores", "train")
    answer = l2l("submit", "priors", *recipe, "--tasks", 1, "--site", site)
    (array, verify), store = answer["jobs"], tmp_path / "stores" / answer["target"].rpartition("/")[2]
    wait_for((store / "done" / "0.json").exists, "a shard is done", 240)
    slurm.call("scancel", "--signal=USR1", "--batch", f"{array['job']}_0")  # as Slurm does before the limit
    slurm.wait_for_state(verify["job"], ENDED, 500)
    status = l2l("status", store)
    assert status["state"] == "done" and status["tasks"][0]["restarts"] == 1
    (log,) = store.with_suffix(".jobs").glob("priors.*.log")
    said = log.read_text()
    assert "stopped at a signal: " in said and said.count(" pairs in ") == 1
    assert PriorStore(store).is_complete


def test_workers_find_the_commit_that_was_fetched_before_them(slurm, l2l, drawn, tmp_path):
    """The jobs inherit next to nothing, the Hub is gone and the branch points elsewhere by the time they run."""
    site, stores, home = tmp_path / "cluster.toml", tmp_path / "stores", tmp_path / "hf"
    site.write_text(
        'gpus_per_node = 0\ncpus_per_process = 1\nsbatch = ["--hold", "--export=PATH,OMP_NUM_THREADS"]\n'
    )
    recipe = [*priors_recipe(drawn, stores, "val"), *settings({"model.path": "owner/tiny"})]
    with serve_hub({"owner/tiny": {"main": TINY_WEIGHTS}}) as hub:
        variables = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
        answer = l2l("submit", "priors", *recipe, "--tasks", 1, "--site", site, **variables)
        commit = hub.commit("owner/tiny", "main")
    (home / "hub" / "models--owner--tiny" / "refs" / "main").write_text("0" * 40)
    for job in answer["jobs"]:
        slurm.call("scontrol", "release", job["job"])
    slurm.wait_for_state(answer["jobs"][1]["job"], ENDED, 240)
    store = stores / Path(answer["target"]).name
    assert l2l("status", store)["state"] == "done"
    fields = PriorStore(store).attrs["fingerprint_fields"]
    assert fields["model"] == {"repository": "owner/tiny", "commit": commit}


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
