"""Training methods, one file each; a new one is a new file, and a line in `METHODS` and in `METHOD_FACTS`."""

from stage2_train.methods.augseg import AugSeg
from stage2_train.methods.base import Method
from stage2_train.methods.catm import Catm
from stage2_train.methods.ccvc import Ccvc
from stage2_train.methods.distillation import Distillation
from stage2_train.methods.fixmatch import FixMatch
from stage2_train.methods.l2l import L2l
from stage2_train.methods.mllm_blend import MllmBlend
from stage2_train.methods.omni_res import OmniRes
from stage2_train.methods.resmatch import ResMatch
from stage2_train.methods.semires import SemiRes
from stage2_train.methods.supervised import Supervised
from stage2_train.methods.tscs_qdw import TscsQdw

METHODS: dict[str, type[Method]] = {
    "supervised": Supervised,
    "fixmatch": FixMatch,
    "resmatch": ResMatch,
    "semires": SemiRes,
    "omni_res": OmniRes,
    "tscs_qdw": TscsQdw,
    "augseg": AugSeg,
    "ccvc": Ccvc,
    "catm": Catm,
    "mllm_blend": MllmBlend,
    "distillation": Distillation,
    "l2l": L2l,
}
"""Name (a config value) -> method."""
