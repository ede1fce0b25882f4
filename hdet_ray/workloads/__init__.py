"""Small real workloads that the demo, the tests and the benchmarks share.

Each module is one workload and reads like what a user would write: settings with presets, data whose
every batch is a function of its number, a model, and a ``train_loop_per_worker`` to copy from.
Loaded by name, when asked for: a command line that lists them needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from hdet_ray.exceptions import ConfigError

WORKLOADS = {
    "byte_lm": "hdet_ray.workloads.byte_lm",
    "digits": "hdet_ray.workloads.digits",
}
"""Module of each workload. It has ``Settings``, ``Task`` and ``train_loop_per_worker``."""


def load_workload(name: str) -> ModuleType:
    """The module of a workload.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in WORKLOADS:
        raise ConfigError(f"workload={name!r} is unknown; use one of {', '.join(sorted(WORKLOADS))}")
    return import_module(WORKLOADS[name])
