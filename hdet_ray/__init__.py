"""The public names, loaded when first used.

`import hdet_ray` alone brings in neither torch nor ray, so that a command line or a service that only
reads a ledger starts at once. Type checkers read the `TYPE_CHECKING` block, Python reads `_NAMES`; a test
holds the two together.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hdet_ray.config import Auto, Fixed, Paper, Thresholds
    from hdet_ray.core.decide import decide, start
    from hdet_ray.core.overrides import Override
    from hdet_ray.core.plan import value_at
    from hdet_ray.core.replay import replay
    from hdet_ray.exceptions import (
        CheckpointError,
        CollectiveError,
        ConfigError,
        DivergenceError,
        HDETError,
        LedgerError,
        MissingExtraError,
        OverrideError,
        ProbeError,
        RollbackLimitError,
        ScheduleExhaustedError,
        SearchError,
    )
    from hdet_ray.optim.averaging import average_parameters
    from hdet_ray.optim.control import Control, LocalControl
    from hdet_ray.optim.hyperparameters import (
        AttentionTemperature,
        Betas,
        Dropout,
        Handle,
        Hyperparameter,
        LabelSmoothing,
        Momentum,
        WeightDecay,
    )
    from hdet_ray.optim.scheduler import HDETOneCycleLR, HDETScheduler
    from hdet_ray.train.attach import attach
    from hdet_ray.train.export import export_weights
    from hdet_ray.train.trainer import HDETTrainer

__version__ = "0.1.0"

__all__ = [
    "AttentionTemperature",
    "Auto",
    "Betas",
    "CheckpointError",
    "CollectiveError",
    "ConfigError",
    "Control",
    "DivergenceError",
    "Dropout",
    "Fixed",
    "HDETError",
    "HDETOneCycleLR",
    "HDETScheduler",
    "HDETTrainer",
    "Handle",
    "Hyperparameter",
    "LabelSmoothing",
    "LedgerError",
    "LocalControl",
    "MissingExtraError",
    "Momentum",
    "Override",
    "OverrideError",
    "Paper",
    "ProbeError",
    "RollbackLimitError",
    "ScheduleExhaustedError",
    "SearchError",
    "Thresholds",
    "WeightDecay",
    "__version__",
    "attach",
    "average_parameters",
    "decide",
    "export_weights",
    "replay",
    "start",
    "value_at",
]

_NAMES = {
    "hdet_ray.config": ("Auto", "Fixed", "Paper", "Thresholds"),
    "hdet_ray.core.decide": ("decide", "start"),
    "hdet_ray.core.overrides": ("Override",),
    "hdet_ray.core.plan": ("value_at",),
    "hdet_ray.core.replay": ("replay",),
    "hdet_ray.exceptions": (
        "CheckpointError",
        "CollectiveError",
        "ConfigError",
        "DivergenceError",
        "HDETError",
        "LedgerError",
        "MissingExtraError",
        "OverrideError",
        "ProbeError",
        "RollbackLimitError",
        "ScheduleExhaustedError",
        "SearchError",
    ),
    "hdet_ray.optim.averaging": ("average_parameters",),
    "hdet_ray.optim.control": ("Control", "LocalControl"),
    "hdet_ray.optim.hyperparameters": (
        "AttentionTemperature",
        "Betas",
        "Dropout",
        "Handle",
        "Hyperparameter",
        "LabelSmoothing",
        "Momentum",
        "WeightDecay",
    ),
    "hdet_ray.optim.scheduler": ("HDETOneCycleLR", "HDETScheduler"),
    "hdet_ray.train.attach": ("attach",),
    "hdet_ray.train.export": ("export_weights",),
    "hdet_ray.train.trainer": ("HDETTrainer",),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}
_INSTALL = {
    "torch": "pip install hdet-ray",
    "ray": "pip install 'hdet-ray[ray]'",
    "pyarrow": "pip install 'hdet-ray[ray]'",
    "safetensors": "pip install 'hdet-ray[ray]'",
    "numpy": "pip install 'hdet-ray[ray]'",
}


def __getattr__(name: str) -> object:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'hdet_ray' has no attribute {name!r}")
    try:
        value: object = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _INSTALL:
            raise
        from hdet_ray.exceptions import MissingExtraError

        raise MissingExtraError(
            f"hdet_ray.{name} needs {package}, which is not installed; run: {_INSTALL[package]}"
        ) from error
    globals()[name] = value  # The next use finds it without coming here.
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
