"""The share of labels that tables print: as it was asked for where that is what there is, else what there is."""

import pytest

from stage2_train.label_share import label_share, percent_text


@pytest.mark.parametrize(
    ("asked", "num_images", "num_train_images", "share"),
    [
        (0.01, 169, 16994, 0.01),
        (0.29, 29, 100, 0.29),  # 0.29 * 100 is 28.999999999999996
        (0.999, 9, 10, 0.999),  # as the draw rounds: down
        (0.999, 10, 10, 1.0),
        (0.29, 28, 100, 0.28),
        (0.05, 3, 24, 0.125),
        (0.05, None, 24, 0.05),
        (0.05, 3, None, 0.05),
        (None, 3, 24, None),
    ],
)
def test_the_share_is_as_asked_where_so_many_were_drawn(
    asked: float | None, num_images: int | None, num_train_images: int | None, share: float | None
) -> None:
    assert label_share(asked, num_images, num_train_images) == share


@pytest.mark.parametrize(
    ("share", "text"), [(0.05, "5%"), (0.001, "0.1%"), (1 / 3, "33.3%"), (None, "unknown")]
)
def test_percent(share: float | None, text: str) -> None:
    assert percent_text(share) == text
