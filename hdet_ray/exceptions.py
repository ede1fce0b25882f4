"""One tree of typed errors: whoever catches `HDETError` catches all that this library raises on purpose.

Each message names the value, the bound that it breaks, and the remedy.
"""

from __future__ import annotations


class HDETError(Exception):
    """Root of the library's errors."""


class ConfigError(HDETError, ValueError):
    """A setting that can't work: found before any training step wherever it can be known."""


class MissingExtraError(HDETError, ImportError):
    """A part of the library needs an optional dependency that is not installed."""


class ScheduleExhaustedError(HDETError, ValueError):
    """The schedule was stepped more often than its ``total_steps``."""


class SearchError(HDETError, RuntimeError):
    """The search for the base value ended without a single live candidate."""


class RollbackLimitError(HDETError, RuntimeError):
    """Every replica was unhealthy, round after round; rolling back did not help."""


class ProbeError(HDETError, RuntimeError):
    """The user's probe broke its contract, on any rank."""


class CollectiveError(HDETError, RuntimeError):
    """The ranks disagree about what they are about to exchange, or can't exchange it."""


class DivergenceError(HDETError, RuntimeError):
    """Replicas that must be equal bit for bit are not: something but the optimizer changed one of them."""


class CheckpointError(HDETError, RuntimeError):
    """A checkpoint is incomplete, of a newer version, or of another model or optimizer."""


class RestoreError(HDETError, RuntimeError):
    """A rank can't read a checkpoint that rank 0 has just found complete: worth another try."""


class LedgerError(HDETError, ValueError):
    """A ledger line can't be read, is missing, or doesn't follow from the lines before it."""


class OverrideError(HDETError, ValueError):
    """An override that names an unknown hyperparameter, or a value outside its bounds."""


class FencedError(HDETError, RuntimeError):
    """A newer attempt of the run has begun: this process no longer speaks for it and must stop."""


class RunPaused(HDETError):  # noqa: N818  # not a failure: how a paused run leaves the user's loop
    """An operator paused the run: its checkpoint is stored, the loop ends here."""
