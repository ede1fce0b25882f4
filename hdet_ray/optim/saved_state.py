"""Saved state: what a scheduler takes from a checkpoint, looked through before anything is changed.

Loading is collective: ranks that went on from different states, or without one that found its file torn,
would wait for each other for ever.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from hdet_ray.core.codec import digest
from hdet_ray.core.state import ScheduleConfig, ScheduleState, state_from_json
from hdet_ray.exceptions import CheckpointError
from hdet_ray.optim.collective import Collective

STATE_DICT_VERSION = 1

_COUNTS = ("last_epoch", "calls_in_round", "moved_in_round")
_SAMPLES = ("samples_total", "samples_in_round")
"""Samples that a run has counted, where it did."""
_REMEDY = "it was cut or made by another class; take another checkpoint"


def agreed_state(
    collective: Collective, state_dict: Mapping[str, Any], own: ScheduleState, *, also: Iterable[str] = ()
) -> ScheduleState:
    """The schedule's state in a scheduler's ``state_dict``, good and the same on every rank; collective.

    Args:
        collective: The run's ranks.
        state_dict: What was saved.
        own: The state of the scheduler that is to go on from it.
        also: Entries that this scheduler's class needs besides.

    Raises:
        CheckpointError: on every rank, where any rank's is of a newer version, damaged, of other groups,
            hyperparameters or another kind of scheduler, or not the same as rank 0's.
    """
    position: tuple[object, ...] = ()
    error: CheckpointError | None = None
    state = own
    try:
        state = _checked(state_dict, own, also)
        position = (digest(state), *(state_dict[name] for name in _COUNTS))
    except CheckpointError as caught:
        error = caught
    collective.agree(error)
    for rank, other in enumerate(collective.gather_objects(position)):
        if other != position:
            raise CheckpointError(
                f"rank {rank} loads a state of step {other[1]}, this rank one of step {position[1]} or of "
                "another run; load the same checkpoint on every rank"
            )
    return state


def _checked(state_dict: Mapping[str, Any], own: ScheduleState, also: Iterable[str]) -> ScheduleState:
    if not isinstance(state_dict, Mapping):
        raise CheckpointError(
            f"the scheduler state is a {type(state_dict).__name__} and no mapping: {_REMEDY}"
        )
    version = state_dict.get("version")
    if not isinstance(version, int) or version > STATE_DICT_VERSION:
        raise CheckpointError(
            f"scheduler state of version {version!r}; this release reads up to {STATE_DICT_VERSION}: "
            "upgrade hdet-ray"
        )
    _check_entries(state_dict, {"schedule", "skipped", *_COUNTS, *also})
    for name in _COUNTS:
        if not isinstance(state_dict[name], int) or state_dict[name] < 0:
            raise CheckpointError(f"the scheduler state's {name}={state_dict[name]!r} is no count: {_REMEDY}")
    for name in _SAMPLES:
        counted = state_dict.get(name, 0)
        if isinstance(counted, bool) or not isinstance(counted, int | float) or not 0 <= counted < math.inf:
            raise CheckpointError(f"the scheduler state's {name}={counted!r} is no count: {_REMEDY}")
    if not isinstance(state_dict["schedule"], Mapping):
        raise CheckpointError(f"the scheduler state's schedule is no mapping: {_REMEDY}")
    state = state_from_json(state_dict["schedule"])
    if state_dict["calls_in_round"]:
        in_search = {"snapshot"} if state.is_searching and state_dict.get("num_replicas") != 1 else set()
        _check_entries(state_dict, {"num_replicas", "losses", *in_search})
    _check_same_kind(state.config, own.config)
    return state


def _check_entries(state_dict: Mapping[str, Any], needed: set[str]) -> None:
    missing = needed - set(state_dict)
    if missing:
        raise CheckpointError(f"the scheduler state lacks {sorted(missing)}: {_REMEDY}")


def _check_same_kind(saved: ScheduleConfig, own: ScheduleConfig) -> None:
    if len(saved.max_lr) != len(own.max_lr):
        raise CheckpointError(
            f"the state has {len(saved.max_lr)} parameter groups, this optimizer {len(own.max_lr)}; "
            "build the optimizer as it was when the state was saved"
        )
    then, now = ({e.key for e in config.explored} for config in (saved, own))
    if then != now:
        raise CheckpointError(
            f"the state explores {sorted(then) or 'no further hyperparameters'}, this scheduler "
            f"{sorted(now) or 'none'}; pass the same hyperparameters="
        )
    kinds = [type(config.controller).__name__.lower() for config in (saved, own)]
    if kinds[0] != kinds[1]:
        raise CheckpointError(
            f"the state is of controller={kinds[0]!r}, this scheduler has {kinds[1]!r}; pass the same "
            "controller="
        )
    if (saved.cycle is None) != (own.cycle is None):
        raise CheckpointError(
            f"the state is {'of' if saved.cycle else 'not of'} a one-cycle base, this scheduler's is "
            f"{'one' if own.cycle else 'none'}; use the class that saved it, HDETOneCycleLR or HDETScheduler"
        )
    if saved.has_probe and not own.has_probe:
        raise CheckpointError(
            "the state compares replicas by a probe, and this scheduler has none; pass probe="
        )
