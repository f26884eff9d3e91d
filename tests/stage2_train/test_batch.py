from types import SimpleNamespace

import pytest
import torch

from stage2_train.batch import known_prior


def test_a_prior_that_is_not_there_is_what_the_network_says() -> None:
    prior_B1HW, weak_B1HW = torch.full((2, 1, 1, 1), 0.9), torch.full((2, 1, 1, 1), 0.2)
    part = SimpleNamespace(prior_B1HW=prior_B1HW, has_prior_B=torch.tensor([True, False]))
    assert known_prior(part, weak_B1HW).flatten().tolist() == pytest.approx([0.9, 0.2])  # type: ignore[arg-type]
