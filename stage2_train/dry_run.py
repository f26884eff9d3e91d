"""What `train --dry-run` says of a run: what it is, what it reads, how large it is.

Nothing is trained, and nothing is written but the memory of image hashes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.config import config_to_dict
from shared.config_fields import config_fields, text_of_value
from shared.errors import DataError
from shared.grid_folders import require_no_grid
from stage2_train.backbones.pretrained import where_pretrained
from stage2_train.checkpoint import list_checkpoints, load_state
from stage2_train.config import TrainConfig
from stage2_train.inputs import open_inputs, say_lost_text, say_no_candidates
from stage2_train.label_share import label_share, percent_text
from stage2_train.params import count_parameters
from stage2_train.recipes import RECIPES
from stage2_train.run_files import (
    has_ended,
    require_ended_as,
    require_resume,
    require_same_start,
    with_own_store,
)
from stage2_train.run_identity import with_recorded_pins
from stage2_train.segmentor import require_fitting_weights
from stage2_train.segmentor_config import PARTS
from stage2_train.trackers import require_installed


def describe(
    config: TrainConfig, recipe: str = "", out: Path | None = None, *, resume: bool = False
) -> dict[str, Any]:
    """Open all that a run reads, and count.

    Args:
        config: The run.
        recipe: The recipe that its settings are compared with; none if there is no such recipe.
        out: Its folder, which is refused as a training would; None looks at none.
        resume: Whether a run that is there may be gone on with.

    Returns:
        `changed` (by field, what the recipe says and what the run says), `labelled` (counts of the split), `store`
        (None if none is read), `pretrained`, `parameters`, `epochs` (passes over the unlabelled references; None if
        they are not read), `state` (where a run that may be gone on with stands, in words; else "") and `config`.

    Raises:
        DataError: Missing or foreign data, split or store, `segmentor.weights` that do not fit the network, a tracker
            that is not installed, or a folder of another run.
    """
    state = ""
    if out is not None:
        require_no_grid(out)
        config = with_recorded_pins(out, config)
        state = _state(config, out, resume=resume)
    require_installed(config.runtime.trackers)
    inputs = open_inputs(config if out is None else with_own_store(out, config))
    require_fitting_weights(config.segmentor)
    if out is not None and (out / "config.json").is_file() and not has_ended(out):
        require_same_start(out, config, inputs)
    pretrained = where_pretrained(config.segmentor)
    try:
        say_lost_text(config, inputs.split)
    except DataError as error:
        pretrained["segmentor.text.tokenizer"] = f"NOT FOUND: {error}"
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
        "pretrained": pretrained,
        "parameters": counts,
        "epochs": seen if config.uses_unlabelled else None,
        "state": state,
        "config": config_to_dict(config),
    }


def _state(config: TrainConfig, out: Path, *, resume: bool) -> str:
    """Where the run of a folder stands, in words; "" of a new one.

    Raises:
        DataError: The folder holds a finished run of other settings or data, or an unfinished one and no `resume`.
    """
    if has_ended(out):
        require_ended_as(out, config)
        return "finished"
    if (out / "config.json").is_file():
        require_resume(out, resume=resume)
    found = list_checkpoints(out / "checkpoints")
    if resume and found:
        return f"continues at step {load_state(found[-1])['step']:,} of {config.steps:,}"
    return "starts anew" if resume else ""


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
        *([f"state: {plan['state']}"] if plan["state"] else []),
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
