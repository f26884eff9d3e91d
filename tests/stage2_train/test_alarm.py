import pytest

from stage2_train.alarm import AlarmConfig, CollapseAlarm, CollapseError


def test_alarm_takes_its_bounds_for_fine() -> None:
    alarm = CollapseAlarm(
        AlarmConfig(patience=1, min_coverage=0.25, min_foreground=0.25, max_foreground=0.75)
    )
    for coverage, foreground in ((0.25, 0.25), (1.0, 0.75)):
        alarm.check(0, 1.0, {"coverage": coverage, "foreground": foreground})


def test_alarm_counts_steps_in_a_row() -> None:
    alarm = CollapseAlarm(AlarmConfig(patience=3, min_coverage=0.1), first_step=2)
    fine, empty = {"coverage": 0.9, "foreground": 0.1}, {"coverage": 0.05, "foreground": 0.1}
    for step, shares in enumerate([empty, empty, empty, empty, fine, empty, empty]):
        alarm.check(step, 1.0, shares)
    with pytest.raises(
        CollapseError, match=r"step 7: pseudo-label coverage was outside 0\.1\.\.1\.0 for 3 steps"
    ) as stopped:
        alarm.check(7, 1.0, empty)
    assert "go on with --resume --set alarm.patience=0; else lower optim.lr" in str(stopped.value)


@pytest.mark.parametrize("foreground", [0.0, 0.99])
def test_alarm_watches_the_foreground(foreground: float) -> None:
    alarm = CollapseAlarm(AlarmConfig(patience=1))
    with pytest.raises(CollapseError, match="foreground"):
        alarm.check(0, 1.0, {"coverage": 0.9, "foreground": foreground})


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_at_once(loss: float) -> None:
    with pytest.raises(CollapseError, match="step 0: the loss is"):
        CollapseAlarm(AlarmConfig(), first_step=100).check(0, loss, {})
    with pytest.raises(CollapseError, match="step 0: the norm of the gradient is"):
        CollapseAlarm(AlarmConfig(), first_step=100).check(0, 1.0, {}, loss)


def test_an_alarm_without_patience_is_off_and_each_share_is_counted_for_itself() -> None:
    bad = {"coverage": 0.0, "foreground": 1.0}
    CollapseAlarm(AlarmConfig(patience=0)).check(0, 1.0, bad)
    with pytest.raises(CollapseError, match="step 0: the loss is nan; lower optim.lr .* in another folder"):
        CollapseAlarm(AlarmConfig(patience=0)).check(0, float("nan"), bad)
    alarm = CollapseAlarm(AlarmConfig(patience=3))
    for shares in (bad, bad, {"coverage": 0.9, "foreground": 0.1}, {"coverage": 0.0, "foreground": 0.1}, bad):
        alarm.check(0, 1.0, shares)
    assert alarm.strikes == {"coverage": 2, "foreground": 1}
