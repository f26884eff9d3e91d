"""Training methods, one file each; a new one is a new file and a line in `METHODS`."""

from stage2_train.methods.base import Method
from stage2_train.methods.fixmatch import FixMatch
from stage2_train.methods.l2l import L2l
from stage2_train.methods.mllm_blend import MllmBlend
from stage2_train.methods.supervised import Supervised

METHODS: dict[str, type[Method]] = {
    "supervised": Supervised,
    "fixmatch": FixMatch,
    "mllm_blend": MllmBlend,
    "l2l": L2l,
}
"""Name (a config value) -> method."""
