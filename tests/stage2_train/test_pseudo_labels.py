import pytest
import torch

from stage2_train.losses import IGNORE
from stage2_train.pseudo_labels import confident_label, mask_iou


def test_confident_label() -> None:
    prob = torch.tensor([[[[0.7, 0.69, 0.5, 0.31, 0.3, 0.0, 1.0]]]])
    assert confident_label(prob, 0.7).tolist() == [[[1, IGNORE, IGNORE, IGNORE, 0, 0, 1]]]


def test_masks_that_found_nothing_do_not_agree() -> None:
    a_BHW = torch.tensor([[[True, True, False]], [[False, False, False]]])
    b_BHW = torch.tensor([[[False, True, True]], [[False, False, False]]])
    assert mask_iou(a_BHW, b_BHW).tolist() == pytest.approx([1 / 3, 0.0])
