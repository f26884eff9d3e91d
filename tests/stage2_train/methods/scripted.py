"""A network that answers what a test wrote down, so that a whole step can be worked out by hand."""

from typing import Any

import torch


class Scripted(torch.nn.Module):
    """Gives the probability maps of `answers` [B,H,W] in turn, as logits with gradient where gradients are on."""

    def __init__(self, *answers: torch.Tensor) -> None:
        super().__init__()
        self.shift = torch.nn.Parameter(torch.zeros(()))
        self.answers = list(answers)

    def forward(self, image: torch.Tensor, *rest: Any) -> torch.Tensor:
        prob = self.answers.pop(0)
        assert len(prob) == len(image), (prob.shape, image.shape)
        logit = torch.logit(prob, eps=1e-6) + self.shift
        return torch.stack((torch.zeros_like(logit), logit), dim=1)

    def text_embedding(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(ids), 4)


def picture(*rows: str) -> torch.Tensor:
    """A boolean mask [H,W] drawn with `#` for true."""
    return torch.tensor([[character == "#" for character in row] for row in rows])
