"""What can be known to fail before any row is asked for. Pure."""

from collections.abc import Sequence

from shared.errors import DataError
from shared.types import Sample
from stage1_priors.config import MllmConfig
from stage1_priors.families import Family, SizeRules

TEXT_TOKENS = 128
"""Room for a prompt but for its image: the families' questions take up to 60 tokens, 200 letters about 50."""


def require_room(model: MllmConfig, family: Family, rules: SizeRules, samples: Sequence[Sample]) -> None:
    """Refuse samples that `model.max_model_len` has no room for: vLLM would fail on each of them.

    Args:
        model: Limits on prompt and answer.
        family: Gives the size at which the model sees an image, and the tokens that this takes.
        rules: The model's limits on the size.
        samples: Those that will be asked about.

    Raises:
        DataError: Names their number, the largest and the settings.
    """
    tokens_of_hw: dict[tuple[int, int], int] = {}
    too_long: list[tuple[int, Sample]] = []
    for sample in samples:
        size_hw = sample.height, sample.width
        if size_hw not in tokens_of_hw:
            tokens_of_hw[size_hw] = family.num_image_tokens(family.processed_size(*size_hw, rules), rules)
        needed = tokens_of_hw[size_hw] + TEXT_TOKENS + model.max_tokens
        if needed > model.max_model_len:
            too_long.append((needed, sample))
    if too_long:
        most, sample = max(too_long, key=lambda one: one[0])
        raise DataError(
            f"{len(too_long)} of {len(samples)} pairs need more tokens than model.max_model_len, "
            f"{model.max_model_len}: {sample.sample_id} ({sample.file_name}, {sample.height} x {sample.width}) up to "
            f"{most}, {TEXT_TOKENS} of them for the text and model.max_tokens={model.max_tokens} for the answer. Raise "
            "model.max_model_len, or let the model see less of large images: model.max_pixels"
        )
