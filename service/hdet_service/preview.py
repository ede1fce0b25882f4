"""What a command would change, computed by `core` itself on the schedule as it stands. Pure.

It answers "if the next plan were made now": what the round that is running may still teach is not known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hdet_ray.core.codec import to_json
from hdet_ray.core.overrides import Override
from hdet_ray.core.plan import RATE, Plan
from hdet_ray.core.planning import plan_for
from hdet_ray.core.state import ScheduleState
from hdet_ray.core.steering import current_value, end_search, fold_commands, settle_overrides
from hdet_ray.train.protocol import Command
from hdet_service.exchange import Standing


def applies_at(state: ScheduleState, override: Override) -> int | None:
    """The round that an override applies at; None: the first one after the search, whichever that is.

    Args:
        state: The state before the running round.
        override: A new one.
    """
    if waits_for_search(state, override):
        return None
    return max(state.round + 1, override.apply_at_round or 0)


def waits_for_search(state: ScheduleState, override: Override) -> bool:
    """A factor on a rate that is still being searched for waits for the end of the search."""
    return override.op == "scale" and override.hparam == RATE and state.is_searching


def asked(override: Override) -> dict[str, Any]:
    """What was asked for, as JSON: an override without its id."""
    return {name: value for name, value in to_json(override).items() if name != "id"}


def preview(standing: Standing, waiting: Sequence[Command], override: Override) -> dict[str, Any]:
    """What an override would change, as JSON.

    Args:
        standing: Where the run stands.
        waiting: Commands that are queued already.
        override: One that was checked.
    """
    at_round = applies_at(standing.state, override)
    without = _planned(standing, waiting, override)
    state, plan = _planned(standing, [*waiting, override], override)
    return {
        "override": asked(override),
        "applies_at_round": at_round,
        "ends_search": standing.state.is_searching
        and not waits_for_search(standing.state, override)
        and not state.is_searching,
        "changes": _changes(without, (state, plan)),
    }


def _planned(
    standing: Standing, commands: Sequence[Command], override: Override
) -> tuple[ScheduleState, Plan]:
    """The state and the plan of the round that the override would apply at."""
    state = standing.state
    if waits_for_search(state, override):
        state = end_search(state)
    state = replace(
        fold_commands(state, commands),
        round=applies_at(state, override) or state.round + 1,
        step=min(state.step + standing.plan.num_steps, state.config.total_steps),
    )
    state = settle_overrides(state)
    return state, plan_for(state, standing.plan.num_replicas)


def _changes(before: tuple[ScheduleState, Plan], after: tuple[ScheduleState, Plan]) -> list[dict[str, Any]]:
    """Every value that differs: what bounds mean by it, and the value at the round's first step."""
    changes = []
    for key in after[0].bounds:
        old, new = current_value(before[0], key), current_value(after[0], key)
        if old != new:
            told: dict[str, Any] = {"hparam": key[0], "group": key[1], "from": old, "to": new}
            if key in before[1].base and key in after[1].base:
                told["base"] = {"from": before[1].base[key], "to": after[1].base[key]}
            changes.append(told)
    return changes
