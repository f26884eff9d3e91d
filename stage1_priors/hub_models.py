"""The models of a stage 1 recipe that are named by repositories of the Hub. Imports neither torch nor vLLM."""

from shared.hub import PROCESSORS, TOKENIZER_SETTINGS, HubModel, is_repository, require_cached
from stage1_priors.config import ImportConfig, MllmConfig, PriorsConfig, ProposerConfig

TOKENIZERS = ("tokenizer.json", "vocab.json", "tokenizer.model")
"""Vocabularies of the multimodal families, of which one will do."""
PARTS = {
    "model": (PROCESSORS, TOKENIZER_SETTINGS, TOKENIZERS),
    "proposer": (PROCESSORS,),
}
"""What each model needs beside config and weights: both look at images, and one reads."""


def hub_model(group: str, chosen: MllmConfig | ProposerConfig) -> HubModel:
    """The repository of a model, by the group of settings that names it: `model` or `proposer`."""
    return HubModel(field=f"{group}.path", name=chosen.path, revision=chosen.revision, parts=PARTS[group])


def hub_models(config: PriorsConfig | ImportConfig) -> list[HubModel]:
    """The multimodal model and the mask proposer's, where they are no folders; their processors come with them."""
    if isinstance(config, ImportConfig):
        return []
    groups: dict[str, MllmConfig | ProposerConfig] = {"model": config.model}
    if config.proposer.is_sam:
        groups["proposer"] = config.proposer
    return [hub_model(group, chosen) for group, chosen in groups.items() if is_repository(chosen.path)]


def pins(config: PriorsConfig | ImportConfig) -> list[str]:
    """Changes, as `--set`, that hold every such model at the commit that lies in the local cache now.

    Workers that start hours apart then ask the same model, whatever becomes of its branch meanwhile.

    Raises:
        DataError: One is not in the cache.
    """
    return [
        f"{model.field.removesuffix('.path')}.revision={require_cached(model).name}"
        for model in hub_models(config)
    ]
