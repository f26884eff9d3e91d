"""The LaTeX table of a grid, read as far as its rows, cells and braces."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from stage2_train.ablate_latex import as_latex

VALUES = {
    ("supervised", 0.01, "val"): (0.615, 0.003),
    ("supervised", 0.01, "testA"): (0.65, 0.004),
    ("supervised", 0.001, "val"): (0.257, None),
    ("supervised", 0.001, "testA"): (0.3, None),
    ("l2l_100%+no-flip", 0.01, "val"): (0.66, 0.01),
    ("l2l_100%+no-flip", 0.01, "testA"): (0.65001, 0.02),
    ("fixmatch", 0.01, "val"): (0.588, 0.026),
}
"""Mean and spread at the original size; much of the later arms is not finished."""


def answer(**changes: Any) -> dict[str, Any]:
    rows = [
        {
            "arm": arm,
            "label": arm.replace("supervised", "Sup. & {co}"),
            "fraction": fraction,
            "split": split,
            "frame": frame,
            "metric": metric,
            "sd": sd,
            "weak_label": "",
            "difference": None,
            "paired_seeds": (),
        }
        | {"label_share": fraction, "num_labelled_images": 40 if fraction == 0.01 else None}
        | {"mean": mean + shift, "seeds": (22, 23) if sd else (22,)}
        for (arm, fraction, split), (mean, sd) in VALUES.items()
        for frame, shift in (("original", 0.0), ("model", 0.1))
        for metric in ("oiou", "miou", "pr@0.5")
    ]
    scores = {"oiou": 0.7, "miou": 0.71}
    found = {
        "rows": rows,
        "prior": {"frozen prior alone": {"val": {"original": scores, "model": scores}}},
        "data": {"dataset": "refshapes", "split_by": "unc", "fingerprint": "abc"},
        "stores": [{"path": "cache/one.zarr", "fingerprint": "feedc0ffee", "arms": {"l2l_100%+no-flip": "L2L"}}],
        "model_sizes": ["96x96"],
        "image_ids_file": "",
        "split_seeds": [0],
        "notes": ["WARNING: the arms differ in steps"],
        "codes": {"aaaa": ["a", "b"], "bbbb": ["l2l_100%+no-flip/fraction-0.01/seed-22"]},
        "unfinished": [{"cell": "l2l_100%+no-flip/fraction-0.001/seed-22", "state": "failed", "reason": "no\nmemory"}],
    }  # fmt: skip
    return found | changes


def tables(text: str) -> dict[str, list[list[str]]]:
    """Cells of every row by the comment above its table; braces must balance, and rules stand alone."""
    bare = re.sub(r"(?<!\\)%.*", "", text)
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", bare):
        depth += 1 if brace == "{" else -1
        assert depth >= 0
    assert depth == 0 and bare.count(r"\begin{tabular}") == bare.count(r"\end{tabular}")
    found = {}
    for title, body in re.findall(r"% ([^\n]*)\n\\begin\{tabular\}(.*?)\\end\{tabular\}", text, re.DOTALL):
        lines = [line for line in body.splitlines()[1:] if not re.match(r"\\(top|mid|bottom|cmid)rule", line)]
        assert all(line.endswith(r" \\") for line in lines)
        found[title] = [line.removesuffix(r" \\").split(" & ") for line in lines]
    return found


def test_every_row_fills_every_column() -> None:
    text = as_latex(answer()) or ""
    found = tables(text)
    rules = r"\cmidrule(lr){2-3}\cmidrule(lr){4-5}"
    assert text.count(rules) == text.count(r"\cmidrule") / 2 == len(found), (
        "one under the splits of each share"
    )
    assert list(found) == [
        f"{name}, percent, {frame} size" for frame in ("original", "model") for name in ("oIoU", "mIoU")
    ]
    for table in found.values():
        shares, *rows = table
        spans = [re.fullmatch(r"\\multicolumn\{(\d)\}\{c\}\{(.*)\}", cell) for cell in shares[1:]]
        assert [span and span.groups() for span in spans] == [("2", r"0.1\%"), ("2", r"1\% (40)")]
        assert {len(row) for row in rows} == {1 + 2 * 2}
        assert rows[0] == ["method", "val", "testA", "val", "testA"]


def test_means_spreads_and_the_best_of_a_column() -> None:
    original, model = (
        tables(as_latex(answer()) or "")[f"oIoU, percent, {name} size"] for name in ("original", "model")
    )
    _, _, prior, supervised, l2l, fixmatch = original
    assert prior == ["frozen prior alone", "70.00", "--", "70.00", "--"]  # above all, and no method
    assert supervised == [r"Sup. \& \{co\}", r"$\mathbf{25.70}$ (1)", r"$\mathbf{30.00}$ (1)",
                          r"$61.50 \pm 0.30$", r"$\mathbf{65.00} \pm 0.40$"]  # fmt: skip
    # equal as printed: both are bold
    assert l2l == [
        r"l2l\_100\%+no-flip",
        "--",
        "--",
        r"$\mathbf{66.00} \pm 1.00$",
        r"$\mathbf{65.00} \pm 2.00$",
    ]
    assert fixmatch == ["fixmatch", "--", "--", r"$58.80 \pm 2.60$", "--"]
    assert model[3][3] == r"$71.50 \pm 0.30$"


def test_more_labels_or_fewer_seeds_are_never_the_best() -> None:
    rows = answer()["rows"]
    for row in rows:
        if row["fraction"] == 0.01 and row["arm"].startswith("l2l"):
            row |= {"weak_label": "box"} if row["split"] == "val" else {"seeds": (22,), "sd": None}
    _, _, _, supervised, l2l, _ = tables(as_latex(answer(rows=rows)) or "")["oIoU, percent, original size"]
    assert supervised[3:] == [r"$\mathbf{61.50} \pm 0.30$", r"$\mathbf{65.00} \pm 0.40$"]
    assert l2l[3:] == [r"$66.00 \pm 1.00$", "$65.00$ (1)"]
    for row in rows:
        row["weak_label"] = "box"
    assert "mathbf" not in (as_latex(answer(rows=rows)) or "")


def test_the_caption_says_what_the_figures_are_of() -> None:
    said = [line for line in (as_latex(answer()) or "").splitlines() if line.startswith("%")]
    for part in ("data: refshapes (unc), annotations abc", "prior store: feedc0ffee", "seeds: 22, 23;",
                 "network's input, 96x96", "seed-22: failed: no memory", "(split_seed 0)",
                 "differ in steps", "2 states of the code"):  # fmt: skip
        assert any(part in line for line in said), part
    assert "prior store: none" in (as_latex(answer(stores=[])) or "")


def test_several_priors_have_a_row_and_a_comment_each() -> None:
    scores = {size: {"oiou": 0.7, "miou": 0.71} for size in ("original", "model")}
    better = {size: {"oiou": 0.8, "miou": 0.81} for size in ("original", "model")}
    stores = [
        {"path": "one.zarr", "fingerprint": "feed", "arms": {"box": "boxes"}},
        {"path": "two.zarr", "fingerprint": "c0ffee", "arms": {"sam": "SAM_2", "sam-s": "SAM_2 s"}},
    ]
    prior = {"frozen prior alone (boxes)": {"val": scores}, "frozen prior alone (SAM_2)": {"val": better}}
    text = as_latex(answer(stores=stores, prior=prior)) or ""
    _, _, first, second, *_ = tables(text)["oIoU, percent, original size"]
    assert first == ["frozen prior alone (boxes)", "70.00", "--", "70.00", "--"]
    assert second == [r"frozen prior alone (SAM\_2)", "80.00", "--", "80.00", "--"]
    assert "% prior store of boxes: feed\n% prior store of SAM_2, SAM_2 s: c0ffee\n" in text


def test_no_table_without_a_finished_run_and_no_row_of_an_unknown_prior() -> None:
    assert as_latex(answer(rows=[])) is None
    assert "frozen prior" not in (as_latex(answer(prior={})) or "")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here")
def test_latex_takes_it(tmp_path: Path) -> None:
    page = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n%s\\end{document}\n"
    (tmp_path / "page.tex").write_text(page % as_latex(answer()))
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]
