"""The miniature run of the training tests."""

from tests.stage2_train.conftest import _keep_torch_state, mini_root

__all__ = ["_keep_torch_state", "mini_root"]
