"""An array of workers over two nodes fills one store, whatever becomes of a worker on the way."""

import json

import pytest

from shared.store.reader import PriorStore
from tests.cluster.drawn import priors_recipe
from tests.cluster.slurm import wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

SCENES = 310
"""About 1,570 sentences: four shards."""


def checksums(store, shard):
    return json.loads((store / "done" / f"{shard}.json").read_text())["body"]["files"]


def test_four_workers_on_two_nodes_one_of_them_queued_again(slurm, site, l2l, tmp_path):
    recipe = priors_recipe(tmp_path, SCENES)
    answer = l2l("submit", "priors", *recipe, "--tasks", 4, "--site", site)
    (array, verify), store = answer["jobs"], tmp_path / "stores" / answer["target"].rpartition("/")[2]
    assert array["tasks"] == [0, 1, 2, 3] and verify["name"] == "verify"
    assert slurm.state(verify["job"]) == "PENDING"

    task_file = store.with_suffix(".jobs") / "priors.1.json"
    wait_for(task_file.exists, "worker 1 has started", 120)
    assert l2l("status", store)["state"] == "running"
    slurm.call("scontrol", "requeue", f"{array['job']}_1")
    slurm.wait_for_state(verify["job"], {"COMPLETED", "FAILED", "CANCELLED"}, 500)
    assert slurm.state(verify["job"]) == "COMPLETED"

    status = l2l("status", store)
    assert status["state"] == "done" and status["progress"]["shards"] == "4 of 4"
    assert [task["restarts"] for task in status["tasks"]] == [0, 1, 0, 0, 0]
    shown = slurm.call("scontrol", "show", "job", array["job"])
    assert {word for word in shown.split() if word.startswith("NodeList=n")} == {"NodeList=n1", "NodeList=n2"}
    reader = PriorStore(store)
    assert reader.is_complete and len(reader) == int(status["progress"]["rows"].partition(" of ")[2])
    assert l2l("submit", "priors", *recipe, "--site", site)["note"] == "done already, nothing to submit"

    before = checksums(store, 1)
    (store / "done" / "1.json").unlink()
    again = l2l("submit", "priors", *recipe, "--tasks", 3, "--site", site)["jobs"]
    assert again[0]["tasks"] == [1]
    slurm.wait_for_state(again[1]["job"], {"COMPLETED", "FAILED", "CANCELLED"}, 300)
    assert slurm.state(again[1]["job"]) == "COMPLETED"
    assert checksums(store, 1) == before
