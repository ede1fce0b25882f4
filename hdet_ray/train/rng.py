"""Random state of one rank: taken at a boundary, put back on resume.

Everything is kept as tensors and plain numbers, so that a checkpoint loads with
``weights_only=True``. Numpy's state is kept where numpy is in use.
"""

from __future__ import annotations

import hashlib
import random
import sys
from typing import Any

import torch


def capture_rng() -> dict[str, Any]:
    """The state of every global generator of this process (torch CPU and GPU, ``random``, numpy)."""
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()  # of the rank's own device
    if "numpy" in sys.modules:
        import numpy as np

        name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
        state["numpy"] = (str(name), np.asarray(keys).tolist(), position, has_gauss, gauss)
    return state


def restore_rng(state: dict[str, Any]) -> None:
    """Put back what `capture_rng` took. A generator that the state doesn't hold is left as it is."""
    torch.set_rng_state(state["torch"])
    random.setstate(_as_tuples(state["python"]))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    if "numpy" in state:
        import numpy as np

        name, keys, position, has_gauss, gauss = state["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))


def seed_rng(seed: int, rank: int) -> None:
    """Seed every global generator of a rank that no checkpoint knows, from ``(seed, rank)`` alone."""
    digest = hashlib.blake2b(f"{seed}/{rank}".encode(), digest_size=8).digest()
    value = int.from_bytes(digest, "little") >> 1  # 63 bits: torch's seeds are signed
    torch.manual_seed(value)  # seeds the GPUs too
    random.seed(value)
    if "numpy" in sys.modules:
        import numpy as np

        np.random.seed(value & 0xFFFFFFFF)


def _as_tuples(value: Any) -> Any:
    # `random.setstate` takes tuples only; a round trip through another format may have made lists.
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list | tuple) else value
