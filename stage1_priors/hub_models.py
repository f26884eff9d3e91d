"""The models of a stage 1 recipe that are named by repositories of the Hub. Imports neither torch nor vLLM."""

from shared.hub import HubModel, is_repository, require_cached
from stage1_priors.config import ImportConfig, MllmConfig, PriorsConfig, ProposerConfig


def hub_models(config: PriorsConfig | ImportConfig) -> list[HubModel]:
    """The multimodal model and the mask proposer's, where they are no folders; their processors come with them."""
    if isinstance(config, ImportConfig):
        return []
    groups: dict[str, MllmConfig | ProposerConfig] = {"model": config.model}
    if config.proposer.is_sam:
        groups["proposer"] = config.proposer
    return [
        HubModel(field=f"{group}.path", name=chosen.path, revision=chosen.revision)
        for group, chosen in groups.items()
        if is_repository(chosen.path)
    ]


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
