"""What `train --dry-run` says of a run: what it is, what it reads, how large it is.

Nothing is trained, and nothing is written but the memory of image hashes.
"""

import contextlib
from collections.abc import Mapping
from typing import Any

from shared.config import config_to_dict
from shared.config_fields import config_fields, text_of_value
from shared.errors import DataError
from stage2_train.backbones.pretrained import where_pretrained
from stage2_train.config import TrainConfig
from stage2_train.inputs import open_inputs, say_lost_text, say_no_candidates
from stage2_train.label_share import label_share, percent_text
from stage2_train.params import count_parameters
from stage2_train.recipes import RECIPES
from stage2_train.segmentor import require_fitting_weights
from stage2_train.segmentor_config import PARTS


def describe(config: TrainConfig, recipe: str = "") -> dict[str, Any]:
    """Open all that a run reads, and count.

    Args:
        config: The run.
        recipe: The recipe that its settings are compared with; none if there is no such recipe.

    Returns:
        `changed` (by field, what the recipe says and what the run says), `labelled` (counts of the split), `store`
        (None if none is read), `pretrained`, `parameters`, `epochs` (passes over the unlabelled references; None if
        they are not read) and `config`.

    Raises:
        DataError: Missing or foreign data, split or store, or `segmentor.weights` that do not fit the network.
    """
    inputs = open_inputs(config)
    require_fitting_weights(config.segmentor)
    with contextlib.suppress(DataError):  # a tokenizer that is not there is said below
        say_lost_text(config, inputs.split)
        say_no_candidates(config, inputs)
    summary = inputs.split.summary()
    counts = count_parameters(config.segmentor)
    if not config.uses_policy:
        counts = {name: number for name, number in counts.items() if name not in ("actor", "critic")}
    own = {field.path: field.value for field in config_fields(config)}
    usual = (
        {field.path: field.value for field in config_fields(RECIPES[recipe]())} if recipe in RECIPES else own
    )
    seen = config.steps * config.batch_unlabelled / max(1, len(inputs.split.unlabelled))
    return {
        "changed": {
            field: [usual.get(field), own.get(field)]
            for field in {**usual, **own}
            if usual.get(field) != own.get(field)
        },
        "labelled": {
            **summary,
            "image_ids": len(summary["image_ids"]),
            "num_train_images": len(inputs.dataset.train_image_ids()),
        },
        "store": inputs.store,
        "pretrained": where_pretrained(config.segmentor),
        "parameters": counts,
        "epochs": seen if config.uses_unlabelled else None,
        "config": config_to_dict(config),
    }


def as_text(plan: Mapping[str, Any]) -> str:
    """The lines for a person, of what `describe` returns."""
    config, split, store = plan["config"], plan["labelled"], plan["store"]
    data, counts, size = config["data"], plan["parameters"], config["segmentor"]["vision"]["image_size"]
    share = label_share(config["fraction"], split["image_ids"], split["num_train_images"])
    draw = config["image_ids_file"] or f"split_seed {config['split_seed']}"
    reads = plan["epochs"] is not None
    parts = ", ".join(f"{name} {counts[name]:,}" for name in PARTS if counts[name])
    policy = [f"{name} {counts[name]:,}" for name in ("actor", "critic") if name in counts]
    batch = f"{config['batch_labelled']} labelled + {config['batch_unlabelled'] if reads else 0} unlabelled samples"
    lines = [
        f"method: {config['method']}, seed {config['seed']}",
        "changes to the recipe:" + ("" if plan["changed"] else " none"),
        *(f"  {field}: {_quoted(old)} -> {_quoted(new)}" for field, (old, new) in plan["changed"].items()),
        f"data: {data['dataset']} ({data['split_by']}) in {data['root']}",
        f"labelled: {percent_text(share)} of {split['num_train_images']:,} train images ({draw}): "
        f"{split['image_ids']:,} images, {split['num_refs']:,} references, {split['num_sentences']:,} sentences",
        "unlabelled: "
        + (
            f"{split['num_unlabelled_refs']:,} references, {split['num_unlabelled_sentences']:,} sentences"
            if reads
            else "not read"
        ),
        f"prior store: {store['path']} ({store['fingerprint']})" if store else "prior store: none is read",
        f"network: {size} x {size} pixels, {counts['segmentor']:,} parameters ({parts})",
        *([f"policy: {', '.join(policy)} parameters"] if policy else []),
        *(f"{field}: {said}" for field, said in plan["pretrained"].items() if said != "none"),
        f"steps: {config['steps']:,} of {batch}",
    ]
    if reads:
        lines.append(f"epochs (passes over the unlabelled references): {plan['epochs']:.2f}")
    return "\n".join([*lines, "--json prints every setting"])


def _quoted(value: Any) -> str:
    """A setting as `--set` takes it; an empty one in quotes."""
    return text_of_value(value) or "''"
