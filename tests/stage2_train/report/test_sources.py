"""Pictures come from the data and the store that a run names, wherever those lie by now, and from no others."""

import json
import shutil

from shared.refer import load_refer
from stage2_train.report.collect import collect_runs
from stage2_train.report.gallery import build_gallery
from stage2_train.report.prior_health import prior_health
from stage2_train.report.sources import Sources
from tests.stage2_train.report.fake_runs import FAILED, write_store
from tests.stage2_train.report.test_tables import edit


def test_sentences_scored_on_other_data_are_not_shown_with_pictures_of_these(make_run, world):
    """Their ids may be in both data sets, and are of other pairs in the one."""
    path = make_run("a")
    for name, annotations in (
        ("val", load_refer(world.data, "refshapes", "unc").fingerprint()),
        ("grown", "x"),
    ):
        for ending in ("json", "jsonl"):
            if name != "val":
                shutil.copy(path / "eval" / f"val.{ending}", path / "eval" / f"{name}.{ending}")
        edit(path / "eval" / f"{name}.json", data={"annotations": annotations})
    runs = collect_runs([path])
    sources = Sources(runs)
    cards, _ = build_gallery(runs, sources)
    assert {card.split for card in cards} == {"val"} and all(card.image for card in cards)
    assert sources.missing == [f"sentences of grown: they were scored on other data than {world.data} holds"]


def test_a_store_is_known_by_its_content_and_not_by_its_place(make_run, world, tmp_path):
    """A junk prior that was moved is a junk prior; a sound one in its place was never read."""
    store = write_store(world, path=tmp_path / "stores" / "junk", canary=FAILED)
    (run,) = collect_runs([make_run("a", store=store)])
    moved = store.rename(store.with_name("moved"))
    health = prior_health(run)
    assert (health.canary, health.path, health.problem) == ("failed", str(moved), "")
    assert Sources([run]).stores == {"a": moved}
    moved.rename(tmp_path / "out of sight")
    other = write_store(world, path=store)
    for file in (other / "zarr.json", other / "spare" / "zarr.json"):
        file.write_text(file.read_text().replace("feedc0ffee12345", "another"))
    health, sources = prior_health(run), Sources([run])
    assert (health.canary, health.problem) == (
        "unknown",
        "another store lies there now",
    ) and not health.statuses
    assert sources.stores == {} and sources.missing == [
        f"prior store: {store} is gone, damaged, or another one by now"
    ]
    assert json.loads((run.path / "config.json").read_text())["store"]["path"] == str(store)
