"""Commands that repeat what a report shows."""

import shlex
import shutil

from stage2_train.report.collect import collect_runs
from stage2_train.report.provenance import commands
from tests.stage2_train.report.test_tables import edit


def test_scores_are_repeated_by_a_command_for_each_data_set_and_second_pass(make_run, tmp_path):
    path = make_run("a", splits=("val", "testA", "testB"))
    own = {"name": "", "dataset": "refshapes", "split_by": "unc", "root": "old place"}
    other = {"name": "plus", "dataset": "refshapes+", "split_by": "unc", "root": "a folder"}
    grown = {"name": "grown", "dataset": "refshapes", "split_by": "unc", "root": "new"}
    for name, split, data in (
        ("plus-val", "val", other),
        ("grown-val", "val", grown),
        ("plus-test", "test", other),
    ):
        for ending in ("json", "jsonl"):
            shutil.copy(path / "eval" / f"val.{ending}", path / "eval" / f"{name}.{ending}")
        edit(path / "eval" / f"{name}.json", data=data | {"split": split})
    edit(path / "eval" / "val.json", data=own | {"split": "val"})
    edit(path / "eval" / "testB.json", self_guided={"original": {}}, with_prior={"original": {}})
    found = [shlex.split(line) for line in commands(collect_runs([path]))]
    assert [line[3:] for line in found if line[:2] == ["l2l", "eval"]] == [
        ["--split", "val", "--split", "testA"],
        ["--split", "testB", "--self-guided", "--with-prior"],
        ["--split", "val", "--data-name", "grown", "--root", "new"],
        "--split test --split val --data-name plus --root".split() + ["a folder", "--dataset", "refshapes+"],
    ]


def test_commands_say_which_data_and_which_store_they_need(make_run, world):
    data, store, *rest = commands(collect_runs([make_run("a")]))
    assert data.startswith(
        f"# Needed first: the data refshapes (unc) in {world.data}, annotations –; l2l data synth "
    )
    assert store.startswith(
        f"# Needed first: the prior store {world.store}, fingerprint feedc0ffee12345; l2l priors run"
    )
    assert rest[0].startswith("l2l train ")
    assert not [
        line for line in commands(collect_runs([make_run("b", method="supervised")])) if "store" in line
    ]
