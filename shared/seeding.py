"""Random generators keyed by what they are for.

Every draw in the project comes from a generator made here from a tuple such as
`(seed, epoch, sample_id, "weak view")`, so that a value does not depend on how many draws came before it, on the
number of workers, or on where a run was resumed.
"""

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

Key = int | str | float


def seed_of(*key: Key) -> int:
    """A 63-bit seed that is a pure function of `key` (types matter: 1 and "1" differ)."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def rng(*key: Key) -> np.random.Generator:
    """A numpy generator that is a pure function of `key`."""
    return np.random.Generator(np.random.PCG64(seed_of(*key)))


def torch_generator(*key: Key) -> "torch.Generator":
    """A CPU torch generator that is a pure function of `key`."""
    import torch

    return torch.Generator().manual_seed(seed_of(*key))
