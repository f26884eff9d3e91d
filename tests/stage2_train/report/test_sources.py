"""Pictures come from the data and the store that a run names, wherever those lie by now, and from no others."""

import json
import shutil

from shared.refer import load_refer
from stage2_train.report.collect import collect_runs
from stage2_train.report.gallery import build_gallery
from stage2_train.report.notices import prior_health
from stage2_train.report.sources import Sources, sources_of
from tests.stage2_train.report.fake_runs import FAILED, write_store
from tests.stage2_train.report.test_tables import edit


def test_pictures_of_other_annotations_are_not_shown(world):
    """Ids are numbers of lines: in a file that has changed they are of other pairs."""
    data = {"root": str(world.data), "dataset": "refshapes", "split_by": "unc"}
    known = next(iter(load_refer(world.data, "refshapes", "unc").samples())).sample_id
    assert Sources(data=data).sample(known) is not None
    other = Sources(data=data, data_fingerprint="another")
    assert other.sample(known) is None and "has other annotations than" in other.missing[0]


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
    sources = sources_of(runs)
    cards, _ = build_gallery(runs, sources)
    assert {card.split for card in cards} == {"val"} and all(card.image for card in cards)
    assert sources.missing == [f"sentences of grown: they were scored on other data than {world.data} holds"]


def test_of_many_missing_images_the_first_is_named_and_the_others_are_counted(world, tmp_path):
    root = shutil.copytree(world.data, tmp_path / "data")
    shutil.rmtree(root / "images")
    sources = Sources(data={"root": str(root), "dataset": "refshapes", "split_by": "unc"})
    samples = {s.file_name: s for s in load_refer(root, "refshapes", "unc").samples()}
    for sample in (*samples.values(), *samples.values()):
        assert sources.image(sample) is None
    (line,) = sources.missing
    assert next(iter(samples)) in line and line.endswith(f"({len(samples) - 1} more)")


def test_a_store_is_known_by_its_content_and_not_by_its_place(make_run, world, tmp_path):
    """A junk prior that was moved is a junk prior; a sound one in its place was never read."""
    store = write_store(world, path=tmp_path / "stores" / "junk", canary=FAILED)
    (run,) = collect_runs([make_run("a", store=store)])
    moved = store.rename(store.with_name("moved"))
    health = prior_health(run)
    assert (health.canary, health.path, health.problem) == ("failed", str(moved), "")
    assert sources_of([run]).stores == {"a": moved}
    moved.rename(tmp_path / "out of sight")
    other = write_store(world, path=store)
    for file in (other / "zarr.json", other / "spare" / "zarr.json"):
        file.write_text(file.read_text().replace("feedc0ffee12345", "another"))
    health, sources = prior_health(run), sources_of([run])
    assert (health.canary, health.problem) == (
        "unknown",
        "another store lies there now",
    ) and not health.statuses
    assert sources.stores == {} and sources.missing == [
        f"prior store: {store} is gone, damaged, or another one by now"
    ]
    assert json.loads((run.path / "config.json").read_text())["store"]["path"] == str(store)
