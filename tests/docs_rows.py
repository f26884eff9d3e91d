"""What is varied when a command of the documentation is run: one row a command, in the order of the pages.

All rows run in one working folder, as a reader's would who follows the pages from their beginning: a row may need what
rows above it made. What the pages call `make` is done by the first of them, at the smallest size.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TINY_MLLM = ROOT / "stage1_priors" / "tiny" / "weights"
TINY_SAM = ROOT / "stage1_priors" / "tiny_sam" / "weights"

LAST_STORE = "{last store}"
"""Stands for the store that was made last."""

# Transformers starts in a second where vLLM takes half a minute.
BY_TRANSFORMERS = "--set engine.kind=transformers"
BRIEFLY = (
    "--set steps=2 --set batch_labelled=2 --set batch_unlabelled=2 "
    "--set eval_every=1 --set val_limit=4 --set runtime.log_every=1"
)
A_QUARTER = "--set fraction=0.25"
# Qwen2.5-VL-7B and SAM 2.1 are played by the models that ship with the code.
SMALL_MODELS = (
    f"{BY_TRANSFORMERS} --set model.path={TINY_MLLM} --set model.dtype=float32 "
    f"--set proposer.path={TINY_SAM} --set canary.mode=warn"
)
# As are Swin-B and BERT-base by towers of their kind with a few channels.
SMALL_TOWERS = (
    "--set segmentor.vision.image_size=64 --set segmentor.vision.heads=1,2,2,4 --set segmentor.vision.depths=1,1,1,1 "
    "--set segmentor.vision.embed_dim=8 --set segmentor.vision.window=4 "
    "--set segmentor.text.heads=2 --set segmentor.text.hidden=16 --set segmentor.text.layers=1 "
    "--set segmentor.text.mlp=32 --set segmentor.text.vocab_size=256 --set segmentor.decoder_width=8"
)
FOLDERS_ALONE = "^nothing to fetch"
NO_SLURM = "needs a Slurm; tests/cluster submits to a real one"


@dataclass(frozen=True, kw_only=True)
class Row:
    """How a documented command is run."""

    command: str
    """What stands after `l2l`, without brackets and quotes."""
    swap: Mapping[str, str] = field(default_factory=dict)
    """What stands for its placeholders."""
    each: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """A placeholder that takes one value after the other."""
    more: str = ""
    """Options that are added."""
    status: int = 0
    """Its exit status."""
    says: str = ""
    """A regular expression that standard output must hold."""
    not_here: str = ""
    """Why the command cannot do its work here; it is then run with `--dry-run`."""
    how: str = "inside"
    """`inside` this process; `torchrun` or `process`: in one of its own; `serve`: until a page has been fetched."""
    vllm: bool = False
    """Whether a real vLLM is started."""
    needs: str = ""
    """Package without which it is skipped."""


STORE = {"STORE": LAST_STORE}
THE_STORE = {"cache/priors/<store>.zarr": LAST_STORE}
DATA = {"ROOT": "cache/data/refshapes", "D": "refshapes", "S": "unc"}
PHOTOS = {"PHOTOS": "photos/photos.jsonl"}
TOWERS = "--set segmentor.vision.weights=swin --set segmentor.text.weights=bert --set segmentor.text.tokenizer=bert"

COMMANDS_TABLE = [
    Row(command="recipes RECIPE", swap={"RECIPE": "embedded"}, says=r"optim\.muon\.lr=0\.006"),
    Row(command="doctor", says=r"(?m)^torch"),
    Row(command="data synth OUT", swap={"OUT": "cache/data/refshapes"}, more="--images 24", says="24 images"),
    Row(command="data init OUT", swap={"OUT": "example"}, says="example/photos.jsonl"),
    Row(command="data import SOURCE OUT", swap={"SOURCE": "export", "OUT": "imported/own.jsonl"},
        says="own.jsonl", needs="pyarrow"),
    Row(command="data check ROOT --dataset D --split-by S", swap=DATA, says="(?m)^train .*24"),
    Row(command="data pack ROOT --dataset D --split-by S", swap=DATA, says="images.h5"),
    Row(command="data leakage ROOT --dataset D:S --ids FILE",
        swap=DATA | {"D:S": "refshapes:unc", "FILE": "seen.txt"}, says="6 of 6 pairs share no image"),
    Row(command="data split ROOT --dataset D --split-by S --fraction F", swap=DATA | {"F": "0.25"}, says="^6 images"),
    Row(command="priors run RECIPE", swap={"RECIPE": "embedded"}, more=BY_TRANSFORMERS, says=r"\.zarr$"),
    Row(command="priors status STORE", swap=STORE, says="ok"),
    Row(command="priors verify STORE --repair", swap=STORE, says="(?m)^ok: yes"),
    Row(command="priors score STORE", swap=STORE, says="oiou"),
    Row(command="priors inspect STORE --out FILE", swap=STORE | {"FILE": "store.html"}, says="page: store.html"),
    Row(command="train RECIPE --out RUN --resume", swap={"RECIPE": "embedded", "RUN": "runs/embedded-l2l"},
        more=f"{BRIEFLY} {A_QUARTER}", says="2 steps"),
    Row(command="eval RUN --split val --split testA", swap={"RUN": "runs/embedded-l2l"}, says="testA .*frozen prior"),
    Row(command="eval RUN --with-prior", swap={"RUN": "runs/embedded-l2l"}, says="with prior: another method"),
    Row(command="ablate GRID", swap={"GRID": "stage2_train/grids/embedded-ablations.toml"}, says="l2l"),
    Row(command="predict RUN IMAGE EXPRESSION",
        swap={"RUN": "runs/embedded-l2l", "IMAGE": "new.jpg", "EXPRESSION": "the red star"}, says="mask"),
    Row(command="export-labels RUN", swap={"RUN": "runs/embedded-l2l"}, says="labels"),
    Row(command="report RUN RUN...", swap={"RUN": "runs/embedded-l2l",
        "RUN...": "runs/embedded-ablations"}, says="frozen prior alone(.|\n)*report: runs/"),
    Row(command="params RECIPE", swap={"RECIPE": "embedded"}, says="sesm"),
    Row(command="weights convert IN.pth OUT.safetensors --from swin",
        swap={"IN.pth": "swin.pth", "OUT.safetensors": "swin.safetensors"}, says="swin.safetensors"),
    Row(command="fetch priors RECIPE", swap={"RECIPE": "embedded"}, says=FOLDERS_ALONE),
    Row(command="fetch train RECIPE", swap={"RECIPE": "embedded"}, says=FOLDERS_ALONE),
    Row(command="fetch ablate GRID", swap={"GRID": "stage2_train/grids/embedded-ablations.toml"}, says=FOLDERS_ALONE),
    Row(command="submit priors RECIPE", swap={"RECIPE": "embedded"}, more="--set splits=val",
        says="priors.sh", not_here=NO_SLURM),
    Row(command="submit train RECIPE", swap={"RECIPE": "embedded"}, more=f"--out runs/job {A_QUARTER}",
        says="torch.distributed.run", not_here=NO_SLURM),
    Row(command="submit ablate GRID", swap={"GRID": "stage2_train/grids/embedded-ablations.toml"},
        more="--out runs/grid-job", says="--array=0", not_here=NO_SLURM),
    Row(command="status RUN|STORE|GRID...", swap={"RUN|STORE|GRID...": "runs/embedded-l2l"},
        more="runs/embedded-ablations", says="validation: oIoU(.|\n)*embedded-ablations: grid, done"),
]  # fmt: skip

REST_OF_THE_README = [
    Row(command="ablate stage2_train/grids/embedded-headline.toml", says="supervised"),
    # Beside the store with candidates of the other page a training would have to be told which to read.
    Row(command="priors run refcoco-qwen2.5-vl-7b --workers auto", more=f"{SMALL_MODELS} --dry-run", says="pairs"),
]  # fmt: skip

OWN_PHOTOS = [
    Row(command="data init photos --images 200", swap={"200": "12"}, says="photos/photos.jsonl"),
    Row(command="data check PHOTOS", swap=PHOTOS, says="(?m)^train .*12"),
    Row(command="fetch priors refcoco-qwen2.5-vl-7b", more=SMALL_MODELS, says=FOLDERS_ALONE),
    Row(command="fetch train paper", more=TOWERS, says=FOLDERS_ALONE),
    Row(command="priors run refcoco-qwen2.5-vl-7b --set data.root=PHOTOS --set splits=train,val", swap=PHOTOS,
        more=SMALL_MODELS, says="photos-jsonl"),
    Row(command="priors score cache/priors/<store>.zarr", swap=THE_STORE, says="oiou"),
    Row(command="train paper --set data.root=PHOTOS --set fraction=1 --set steps=1000 --set eval_every=100 "
        "--out runs/photos", swap=PHOTOS, says="2 steps",
        more=f"{TOWERS} {SMALL_TOWERS} {BRIEFLY} --set precision=fp32 --set runtime.workers=0"),
    Row(command="eval runs/photos", says="val .*frozen prior"),
    Row(command="predict runs/photos new.jpg the mug left of the laptop", says="mask"),
    # The same drawings play the photos, so there are two stores of them here.
    Row(command="priors run embedded --set data.root=photos/photos.jsonl --set splits=train,val", more=BY_TRANSFORMERS,
        says="photos-jsonl"),
    Row(command="train embedded --set data.root=photos/photos.jsonl --set fraction=1 --out runs/trial",
        more=f"--set 'store={LAST_STORE}' {BRIEFLY}", says="2 steps"),
    Row(command="eval runs/trial", says="val .*frozen prior"),
    Row(command="predict runs/photos --jsonl PAIRS", swap={"PAIRS": "photos/photos.jsonl"}, says="num_failed: 0"),
    Row(command="train RUN --set store=STORE --out NEW", swap=STORE | {"RUN": "runs/trial", "NEW": "runs/grown"},
        says="2 steps"),
]  # fmt: skip

REAL_MODELS = [
    # What is drawn lies where RefCOCO would, and the check says that it has not RefCOCO's numbers.
    Row(command="data check data/refer --dataset refcoco --split-by unc", status=1, says="(?m)^train .*16"),
    Row(command="priors run refcoco-qwen2.5-vl-7b --set proposer.candidates.num=16 --workers auto", more=SMALL_MODELS,
        says="refcoco-unc"),
    Row(command="train paper --out runs/paper", how="torchrun", says="2 steps",
        more=f"{TOWERS} {SMALL_TOWERS} {BRIEFLY} {A_QUARTER} --set precision=fp32 --set runtime.workers=0 --quiet"),
    Row(command="eval runs/paper --split val --split testA --split testB", how="torchrun", more="--quiet",
        says="testB .*frozen prior"),
    Row(command="report runs/paper", says="report: runs/paper/report.html"),
    Row(command="ablate stage2_train/grids/paper-headline.toml --jobs 8 --set accumulation=4", says="supervised",
        more=f"{TOWERS} {SMALL_TOWERS} --set batch_labelled=4 --set batch_unlabelled=4 --set precision=fp32 "
        "--set runtime.workers=0"),
    Row(command="priors run refcoco-qwen2.5-vl-7b --limit 64", more=SMALL_MODELS, says="refcoco-unc"),
    Row(command="priors run import --set source=MASKS", swap={"MASKS": "masks"}, says="refcoco-unc"),
]  # fmt: skip

CLUSTER = [
    Row(command="submit priors refcoco-qwen2.5-vl-7b --tasks 16 --dry-run", more=f"{SMALL_MODELS} --set splits=val",
        says="#SBATCH --account=vision"),
    Row(command="submit priors refcoco-qwen2.5-vl-7b --tasks 16", more=f"{SMALL_MODELS} --set splits=val",
        says="--dependency=afterok", not_here=NO_SLURM),
    Row(command="status cache/priors/<store>.zarr", swap=THE_STORE, says="done"),
    Row(command="submit train paper --out runs/paper --nodes 2 --after cache/priors/<store>.zarr --split val "
        "--split testA", swap={"runs/paper": "runs/other", "cache/priors/<store>.zarr": LAST_STORE},
        says="--nodes=2(.|\n)*name=eval", not_here=NO_SLURM, more=f"{TOWERS} {SMALL_TOWERS} {A_QUARTER}"),
    Row(command="submit ablate stage2_train/grids/embedded-methods.toml", more="--out runs/grid-job", says="--array=0",
        not_here=NO_SLURM),
    Row(command="status runs/paper", says="done"),
]  # fmt: skip

COMPARING_RUNS = [
    Row(command="ablate stage2_train/grids/embedded-methods.toml --dry-run",
        says="to do .*supervised/fraction-0.25/seed-22"),
    Row(command="ablate stage2_train/grids/embedded-methods.toml", says="supervised"),
    Row(command="eval runs/RUN --root DATA --dataset refcoco+", says="val .*network",
        swap={"runs/RUN": "runs/embedded-l2l", "DATA": "example/photos.jsonl", "refcoco+": "photos"}),
    Row(command="train embedded --set seed=$seed --out runs/l2l-$seed --resume", each={"$seed": ("22", "23", "24")},
        more=f"{BRIEFLY} {A_QUARTER}", says="2 steps"),
    Row(command="eval runs/l2l-$seed", each={"$seed": ("22", "23", "24")}, says="val .*network"),
    Row(command="report runs/l2l-22 runs/l2l-23 runs/l2l-24", says="l2l-24"),
    Row(command="train --resume --out runs/l2l-22", says="finished"),
    Row(command="train runs/l2l-22 --set seed=25 --out runs/l2l-25", says="2 steps"),
]  # fmt: skip

OTHER_PAGES = [
    Row(command="priors run embedded --set proposer.candidates.num=16", more=f"{BY_TRANSFORMERS} --set splits=train",
        says="refshapes-unc"),
    Row(command="train semires-embedded --set store=STORE --out runs/semires", swap=STORE,
        more=f"{BRIEFLY} {A_QUARTER}", says="2 steps"),
    Row(command="priors run embedded --set proposer.kind=<name> --dry-run", swap={"<name>": "soft-box"}, says="pairs"),
    Row(command="priors run embedded --set proposer.kind=<name> --limit 64", swap={"<name>": "soft-box"},
        more=f"{BY_TRANSFORMERS} --set splits=val", says="refshapes-unc"),
    Row(command="priors run embedded --set proposer.kind=<name>", swap={"<name>": "sam2"}, how="process", vllm=True,
        more="--set splits=val --quiet", says="refshapes-unc"),
    Row(command="priors inspect STORE", swap=STORE, how="serve", says="^http://127.0.0.1"),
    Row(command="priors run refcoco-qwen2.5-vl-7b --set model.path=FOLDER --dry-run", swap={"FOLDER": str(TINY_MLLM)},
        more=f"--set proposer.path={TINY_SAM}", says="pairs"),
    Row(command="priors run refcoco-qwen2.5-vl-7b --set model.path=FOLDER --set splits=val",
        swap={"FOLDER": str(TINY_MLLM)}, more=SMALL_MODELS, says="refcoco-unc"),
    Row(command="priors inspect STORE --status without a prior", swap=STORE, more="--out without.html",
        says="page: without.html"),
    Row(command="priors run embedded --set engine.kind=transformers", says="refshapes-unc"),
    Row(command="train <name>-embedded --dry-run", swap={"<name>": "fixmatch"}, more=A_QUARTER, says="labelled"),
    Row(command="train <name>-embedded --out runs/<name>", swap={"<name>": "fixmatch"},
        more=f"{BRIEFLY} {A_QUARTER}", says="2 steps"),
    Row(command="eval runs/<name> --split val", swap={"<name>": "fixmatch"}, says="val .*network"),
    Row(command="report runs/<name> runs/embedded-l2l", swap={"<name>": "fixmatch"},
        says="fixmatch(.|\n)*embedded-l2l"),
    Row(command="ablate stage2_train/grids/<file>", swap={"<file>": "embedded-draws.toml"},
        more=f"--set 'store={LAST_STORE}'", says="val"),
]  # fmt: skip

ROWS = [
    *COMMANDS_TABLE,
    *REST_OF_THE_README,
    *OWN_PHOTOS,
    *REAL_MODELS,
    *CLUSTER,
    *COMPARING_RUNS,
    *OTHER_PAGES,
]

NAMED = [
    "ablate",
    "data check",
    "data import",
    "data pack",
    "data split",
    "eval",
    "fetch",
    "predict",
    "priors inspect",
    "priors run",
    "priors run import",
    "priors score",
    "priors verify",
    "recipes",
    "status",
    "submit",
    "train",
    "weights convert",
]
"""Commands that a sentence speaks of by name; a row runs each with its arguments."""
