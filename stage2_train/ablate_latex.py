r"""The table of a grid for a paper: LaTeX with booktabs, a `tabular` for each metric and size of image.

Rows are methods, columns the shares of labels and within them the splits; mean and sample standard deviation over
seeds, in percent. Bold is the best mean of a column among the methods, as printed; the frozen prior is not one of them,
nor is a method that was given weak labels besides, nor one of fewer seeds than others of its column. Where other cells
have more seeds their number stands in brackets. A comment above says what the figures are of.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from stage2_train.ablate_table import FRAMES, labels_text, readers, remarks

METRICS = {"oiou": "oIoU", "miou": "mIoU"}
"""Metrics that are printed, and their names."""
SPECIAL = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)
"""What LaTeX reads as something else."""


def as_latex(answer: Mapping[str, Any]) -> str | None:
    """The tables of what `ablate.run_grid` returns; None where no cell is finished."""
    if not answer["rows"]:
        return None
    tables = [
        f"% {name}, percent, {frame} size\n{_tabular(answer, frame, metric)}"
        for frame in FRAMES
        for metric, name in METRICS.items()
    ]
    return "\n\n".join([_caption(answer), *tables]) + "\n"


def _caption(answer: Mapping[str, Any]) -> str:
    """What a caption has to say, as comments."""
    data, stores = answer["data"], answer["stores"]
    priors = [
        f"prior store{f' of {readers(one, 12)}' if len(stores) > 1 else ''}: {one['fingerprint']}"
        for one in stores
    ]
    seeds = sorted({seed for row in answer["rows"] for seed in row["seeds"]})
    lines = [
        r"needs \usepackage{booktabs}; a tabular for each metric and size of image",
        f"data: {data['dataset']} ({data['split_by']}), annotations {data['fingerprint']}",
        *(priors or ["prior store: none"]),
        f"seeds: {', '.join(map(str, seeds))}; mean and sample standard deviation, (n) over n of them alone; bold the "
        "best mean of methods with the same labels and as many seeds",
        f"original size: that of the images; model size: the network's input, {' or '.join(answer['model_sizes'])}",
        *remarks(answer),
        *(
            f"not finished: {cell['cell']}: {cell['state']}: {cell['reason']}"
            for cell in answer["unfinished"]
        ),
    ]
    return "\n".join("% " + " ".join(line.split()) for line in lines)


def _tabular(answer: Mapping[str, Any], frame: str, metric: str) -> str:
    rows = [row for row in answer["rows"] if (row["frame"], row["metric"]) == (frame, metric)]
    splits = list(dict.fromkeys(row["split"] for row in rows))
    labels = {row["fraction"]: labels_text(row) for row in rows}
    fractions = sorted(labels)
    columns = [(fraction, split) for fraction in fractions for split in splits]
    found = {(row["arm"], row["fraction"], row["split"]): row for row in rows}
    most = max(len(row["seeds"]) for row in answer["rows"])
    best = {
        column: _best([row for row in rows if (row["fraction"], row["split"]) == column])
        for column in columns
    }
    lines = [
        rf"\begin{{tabular}}{{l*{{{len(columns)}}}{{c}}}}",
        r"\toprule",
        *_head([labels[fraction] for fraction in fractions], splits),
        r"\midrule",
    ]
    for name, of_splits in answer["prior"].items():
        prior = {split: _percent(scores[frame][metric]) for split, scores in of_splits.items()}
        lines.append(_line(name.translate(SPECIAL), [prior.get(split, "--") for _, split in columns]))
    lines += [r"\midrule"] if answer["prior"] else []
    for arm, label in {row["arm"]: row["label"] for row in rows}.items():
        cells = [_cell(found.get((arm, *column)), best[column], most) for column in columns]
        lines.append(_line(label.translate(SPECIAL), cells))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _head(labels: Sequence[str], splits: Sequence[str]) -> list[str]:
    """Shares of labels over their splits."""
    wide = len(splits)
    shares = [rf"\multicolumn{{{wide}}}{{c}}{{{text.translate(SPECIAL)}}}" for text in labels]
    rules = (
        rf"\cmidrule(lr){{{first}-{first + wide - 1}}}" for first in range(2, 2 + wide * len(labels), wide)
    )
    names = [split.translate(SPECIAL) for split in splits] * len(labels)
    return [_line("", shares), "".join(rules), _line("method", names)]


def _line(name: str, cells: Sequence[str]) -> str:
    return " & ".join([name, *cells]) + r" \\"


def _best(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Arms with the best mean of a column, as printed, among those with the same labels and as many seeds as any."""
    most = max((len(row["seeds"]) for row in rows), default=0)
    means = {row["arm"]: row["mean"] for row in rows if not row["weak_label"] and len(row["seeds"]) == most}
    printed = _percent(max(means.values(), default=0.0))
    return [arm for arm, mean in means.items() if _percent(mean) == printed]


def _cell(row: Mapping[str, Any] | None, best: Sequence[str], most: int) -> str:
    """Mean and spread, bold for one of the best, and the number of seeds if other cells of the table have more.

    A single seed has no spread, what is missing is a dash.
    """
    if row is None:
        return "--"
    mean, num = _percent(row["mean"]), len(row["seeds"])
    shown = rf"\mathbf{{{mean}}}" if row["arm"] in best else mean
    spread = "" if row["sd"] is None else rf" \pm {_percent(row['sd'])}"
    return f"${shown}{spread}$" + (f" ({num})" if num < most else "")


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"
