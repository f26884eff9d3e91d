"""Chart geometry: ticks, ranges, thinning, and what a screen reader is told."""

import pytest

from stage2_train.report.charts import (
    LEFT,
    MAX_POINTS,
    MAX_TABLE_ROWS,
    Dot,
    Line,
    dot_plot,
    line_chart,
    tick_texts,
    ticks,
)


def chart(points, **options):
    line = Line(label="run", points=tuple(points))
    return line_chart([line], title="T", x_label="step", y_label="loss", **options)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]), (0, 500, ["0", "100", "200", "300", "400", "500"])],
)
def test_ticks_are_round_numbers(low, high, expected):
    assert tick_texts(ticks(low, high, 5)) == expected


@pytest.mark.parametrize(
    ("low", "high"), [(0.93, 0.98), (-0.01, 0.02), (0, 1e-5), (0, 2.4e-4), (0.93, 0.93003), (17, 123456)]
)
def test_ticks_lie_inside_and_are_enough(low, high):
    values = ticks(low, high, 5)
    assert 2 <= len(values) <= 6
    assert low - 1e-12 <= values[0] and values[-1] <= high + 1e-9
    assert len(set(tick_texts(values))) == len(values)


def test_labels_have_the_decimals_that_they_need():
    assert tick_texts([0.0, 0.0002, 0.0004]) == ["0.0000", "0.0002", "0.0004"]
    assert tick_texts([0.0, 2e-5, 4e-5]) == ["0", "2e-05", "4e-05"]
    assert (tick_texts([0.5]), tick_texts([0.0]), tick_texts([])) == (["0.5"], ["0"], [])


def test_no_points_no_chart():
    assert chart([]) is None
    assert dot_plot([], title="T", x_label="x") is None


def test_one_point_is_drawn_inside_the_box():
    drawn = chart([(0.0, 0.0)])
    left, top, right, bottom = drawn.box
    x, y = drawn.lines[0]["points"][0]
    assert left <= x <= right and top <= y <= bottom


@pytest.mark.parametrize("step", [1, 10, 137])
def test_steps_are_whole_numbers(step):
    texts = [text for _, text in chart([(float(step), 0.5)]).x_ticks]
    assert texts and all(text.replace(",", "").isdecimal() for text in texts)


def test_long_figures_have_room_beside_the_name_of_the_axis():
    """Rewards near nought have seven characters, each of less than 7 units; four have always fitted."""
    near, plain = chart([(1, -0.0009), (2, -0.0017)]), chart([(1, 0.1), (2, 0.5)])
    longest = max(len(text) for _, text in near.y_ticks)
    assert longest >= 7 and near.box[0] - 7 - 7 * longest >= 20
    assert near.lines[0]["points"][0][0] >= near.box[0] == near.x_ticks[0][0]
    assert plain.box[0] == LEFT


def test_points_keep_their_order_and_direction():
    drawn = chart([(0, 0.0), (50, 0.5), (100, 1.0)], unit_interval=True)
    xs, ys = zip(*drawn.lines[0]["points"], strict=True)
    assert list(xs) == sorted(xs) and list(ys) == sorted(ys, reverse=True), "up is more"
    left, top, right, bottom = drawn.box
    assert (xs[0], ys[0], xs[-1], ys[-1]) == (left, bottom, right, top) and drawn.hover["x"] == list(xs)
    assert drawn.y_ticks[0] == (bottom, "0.0") and drawn.y_ticks[-1] == (top, "1.0")


def heights(*values, **options):
    """Where values stand in their chart: 0 at its foot, 1 at its top."""
    drawn = chart(list(enumerate(values)), **options)
    _, top, _, bottom = drawn.box
    return [(bottom - y) / (bottom - top) for _, y in drawn.lines[0]["points"]]


def test_the_values_fill_the_height():
    """Shares begin at 0 unless they lie close together far from it; nothing begins below 0 that is not."""
    assert heights(1.0, 2.0) == pytest.approx([0.05, 0.95], abs=0.01)
    assert heights(0.9, 0.95, unit_interval=True) == pytest.approx([0.05, 0.95], abs=0.01)
    assert heights(0.3, 1.2, unit_interval=True) == pytest.approx([0.24, 0.96], abs=0.01)
    assert heights(0.01, 1.0)[0] == pytest.approx(0.01, abs=0.01)
    assert heights(0.0, 0.0) == [0, 0] and heights(-0.5, 0.5) == pytest.approx([0.05, 0.95], abs=0.01)


@pytest.mark.parametrize(
    ("steps", "first", "last"), [((5, 98), "0", "100"), ((5, 110), "0", "100"), ((50, 100), "50", "100")]
)
def test_steps_begin_at_nought_and_end_at_a_tick_if_they_nearly_do(steps, first, last):
    drawn = chart([(step, 0.5) for step in steps])
    ends = [place for place, _ in (drawn.x_ticks[0], drawn.x_ticks[-1])]
    assert (drawn.x_ticks[0][1], drawn.x_ticks[-1][1], ends[0]) == (first, last, drawn.box[0])
    assert (ends[1] == drawn.box[2]) == (steps[1] != 110)
    assert (drawn.lines[0]["points"][-1][0] == drawn.box[2]) == (steps[1] != 98)


def test_long_curves_are_averaged_not_cut():
    drawn = chart([(step, float(step % 2)) for step in range(5000)])
    assert len(drawn.lines[0]["points"]) <= MAX_POINTS and drawn.hover["label"][0] == "16"
    assert all(value == pytest.approx(0.5, abs=0.05) for value in drawn.hover["lines"][0]["y"])


def test_summary_and_table_tell_the_numbers():
    drawn = chart([(0, 2.0), (100, 0.25)])
    assert "run: 2 at 0, 0.25 at 100" in drawn.summary
    assert drawn.table == [["step", "run"], ["0", "2"], ["100", "0.25"]]
    shown = [row[0] for row in chart([(step, 1.0) for step in range(100)]).table]
    assert len(shown) == 1 + MAX_TABLE_ROWS and (shown[1], shown[-1]) == ("0", "99")


def test_categories_stand_apart_and_are_named_everywhere():
    """The second curve has no value of the middle one."""
    lines = [
        Line(label="a", points=((0.0, 0.5), (1.0, 0.6), (2.0, 0.7))),
        Line(label="b", points=((0.0, 0.1), (2.0, 0.2))),
    ]
    names = ["1–2", "3–4", "12+"]
    drawn = line_chart(lines, title="T", x_label="words", y_label="oIoU", categories=names)
    places, texts = zip(*drawn.x_ticks, strict=True)
    step = places[1] - places[0]
    assert list(texts) == names == drawn.hover["label"] and list(places) == drawn.hover["x"]
    assert (places[0] - drawn.box[0], drawn.box[2] - places[2]) == pytest.approx(
        (step / 2, step / 2), abs=0.2
    )
    assert drawn.summary.endswith("a: 0.5 at 1–2, 0.7 at 12+; b: 0.1 at 1–2, 0.2 at 12+.")
    assert drawn.table == [
        ["words", "a", "b"],
        ["1–2", "0.5", "0.1"],
        ["3–4", "0.6", "–"],
        ["12+", "0.7", "0.2"],
    ]
    assert [line["y"] for line in drawn.hover["lines"]] == [[0.5, 0.6, 0.7], [0.1, None, 0.2]]
    many = [Line(label="c", points=tuple((float(x), 0.5) for x in range(30)))]
    assert line_chart(many, title="T", x_label="x", y_label="y", categories=[*map(str, range(30))]).markers


def test_points_are_marked_where_they_are_few():
    assert [chart([(x, 0.5) for x in range(num)]).markers for num in (2, 24, 25)] == [True, True, False]


def test_dot_plot_marks_the_prior_and_scales_together():
    dots = [Dot(label="a", value=0.2, kind="run", low=0.1, high=0.3), Dot(label="p", value=0.4, kind="prior")]
    plot = dot_plot(dots, title="T", x_label="x")
    assert (
        plot.guide_x == plot.rows[1]["x"] > plot.rows[0]["x_high"] > plot.rows[0]["x"] > plot.rows[0]["x_low"]
    )
    assert "a 0.200; p 0.400" in plot.summary


def test_a_dot_plot_ends_above_its_longest_bar_and_at_one():
    low = dot_plot([Dot(label="a", value=0.2, kind="run", low=-0.01, high=0.34)], title="T", x_label="x")
    high = dot_plot([Dot(label="a", value=0.98, kind="run", low=0.9, high=1.02)], title="T", x_label="x")
    assert (low.x_ticks[0], low.x_ticks[-1]) == ((low.left, "0.0"), (low.right, "0.4"))
    assert high.x_ticks[-1] == (high.right, "1.0") and low.guide_x is None
    assert low.rows[0]["x_low"] == low.left and high.rows[0]["x_high"] == high.right
    assert dot_plot([Dot(label="a", value=0.0, kind="run")], title="T", x_label="x").rows[0]["x"] == low.left


def test_a_dot_plot_has_a_row_each_with_room_for_its_name():
    names = ["n" * 27, "n" * 28, "short"]
    plot = dot_plot([Dot(label=name, value=0.5, kind="run") for name in names], title="T", x_label="x")
    assert [row["label"] for row in plot.rows] == [names[0], "n" * 13 + "…" + "n" * 13, "short"]
    assert [row["full"] for row in plot.rows] == names and plot.left >= 7 * 27
    ys = [row["y"] for row in plot.rows]
    assert all(b - a >= 20 for a, b in zip([0, *ys], [*ys, plot.height], strict=True))


def test_a_long_name_keeps_both_ends_and_a_short_one_is_taken_if_there_is_one():
    dots = [
        Dot(label="supervised/fraction-0.01/seed-22", value=0.5, kind="run"),
        Dot(label="l2l/fraction-0.01/seed-22", short="l2l, seed 22", value=0.5, kind="run"),
    ]
    cut, short = (row["label"] for row in dot_plot(dots, title="T", x_label="x").rows)
    assert cut.startswith("supervised") and cut.endswith("seed-22") and short == "l2l, seed 22"
