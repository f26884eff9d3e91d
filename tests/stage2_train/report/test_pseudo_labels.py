"""A real, tiny run: trained, scored and reported, with what it was taught from."""

import shutil

import pytest

from shared.errors import DataError
from stage2_train.evaluate import evaluate_run
from stage2_train.report import write_report
from stage2_train.report.collect import collect_runs
from stage2_train.report.pseudo_labels import taught_by
from stage2_train.train import train
from tests.stage2_train.miniature import mini_config, plain_config


@pytest.fixture(scope="module")
def trained(mini_root, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "l2l"
    train(mini_config(mini_root, eval_every=3), out, recipe="mini", quiet=True)
    evaluate_run(out, "val")
    return out


def test_the_last_batch_is_cut_into_taught_and_ignored_pixels(trained):
    items = taught_by(trained, most=3)
    assert len(items) == 3
    for item in items:
        assert item.sample.split == "train"
        assert item.foreground_HW.shape == item.weak_HW.shape == (32, 32)
        assert not (item.foreground_HW & item.background_HW).any()
        assert item.target_HW[item.foreground_HW].all() and not item.target_HW[item.background_HW].any()


@pytest.mark.parametrize("method", ["semires", "omni_res", "augseg", "ccvc", "catm"])
def test_methods_that_read_or_keep_something_of_their_own_can_be_shown(mini_root, tmp_path, method):
    train(plain_config(mini_root, method, steps=1), tmp_path / method, quiet=True)
    items = taught_by(tmp_path / method, most=4)
    assert len(items) == 4 and any((item.foreground_HW | item.background_HW).any() for item in items)
    assert not any((item.foreground_HW & item.background_HW).any() for item in items)


def test_the_supervised_method_has_nothing_to_show(mini_root, tmp_path):
    train(plain_config(mini_root, "supervised", steps=1), tmp_path / "s", quiet=True)
    assert taught_by(tmp_path / "s", most=3) == []


def test_an_unfinished_run_is_refused(mini_root, tmp_path):
    with pytest.raises(DataError):
        taught_by(tmp_path, most=3)


def test_a_run_without_scores_is_reported_too(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "l2l", ignore=shutil.ignore_patterns("eval"))
    path, text = write_report([run])
    html = path.read_text("utf-8")
    assert "no scores yet" in text and "pixels taught" in html and "Not shown" not in html


def test_everything_a_real_run_leaves_is_reported(trained):
    (run,) = collect_runs([trained])
    assert run.missing == [] and run.method == "l2l" and run.store["fingerprint"]
    path, text = write_report([trained])
    html = path.read_text("utf-8")
    for words in (
        "pixels taught",
        "Validation oIoU",
        "Thresholds of the pseudo-labels",
        "l2l train mini --out",
    ):
        assert words in html
    scores = run.evals["val"]
    assert f"{scores.score('original', 'oiou'):.3f}" in text
    assert "unreadable" not in html and "Not shown" not in html
