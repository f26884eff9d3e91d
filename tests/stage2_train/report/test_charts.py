"""Chart geometry: ticks, ranges, thinning, and what a screen reader is told."""

import pytest

from stage2_train.report.charts import LEFT, MAX_POINTS, Dot, Line, dot_plot, line_chart, tick_texts, ticks


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
    assert drawn.y_ticks[0][1] == "0.0" and drawn.y_ticks[-1][1] == "1.0"


def test_long_curves_are_averaged_not_cut():
    drawn = chart([(step, float(step % 2)) for step in range(5000)])
    assert len(drawn.lines[0]["points"]) <= MAX_POINTS
    assert all(value == pytest.approx(0.5, abs=0.05) for value in drawn.hover["lines"][0]["y"])


def test_summary_and_table_tell_the_numbers():
    drawn = chart([(0, 2.0), (100, 0.25)])
    assert "run: 2 at 0, 0.25 at 100" in drawn.summary
    assert drawn.table == [["step", "run"], ["0", "2"], ["100", "0.25"]]


def test_dot_plot_marks_the_prior_and_scales_together():
    dots = [Dot(label="a", value=0.2, kind="run", low=0.1, high=0.3), Dot(label="p", value=0.4, kind="prior")]
    plot = dot_plot(dots, title="T", x_label="x")
    assert (
        plot.guide_x == plot.rows[1]["x"] > plot.rows[0]["x_high"] > plot.rows[0]["x"] > plot.rows[0]["x_low"]
    )
    assert "a 0.200; p 0.400" in plot.summary
