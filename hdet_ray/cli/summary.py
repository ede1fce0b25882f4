"""A run in a few facts and sentences: what the report says above its charts."""

from __future__ import annotations

import math

from hdet_ray.view.history import History
from hdet_ray.view.numbers import loss_text, rate_text
from hdet_ray.view.samples import account

Fact = tuple[str, str]
"""A name and what stands beside it."""


def facts_of(history: History) -> tuple[Fact, ...]:
    """What one wants to know of a run first."""
    state = history.state
    config = state.config
    controller = type(config.controller).__name__.lower()
    facts = [
        ("controller", controller),
        ("replicas", str(history.num_replicas or "–")),
        (
            "steps",
            f"{state.step} of {config.total_steps}" if state.step < config.total_steps else str(state.step),
        ),
        ("rounds", str(len(history.rounds))),
        ("max_lr given", rate_text(config.max_lr[0])),
    ]
    if state.search is not None:
        search = state.search
        share = state.search_steps / config.total_steps
        if search.result is not None:
            facts.append(("max_lr found", rate_text(config.max_lr[0] * math.exp(search.result))))
        facts.append((f"search ({share:.1%} of the run)", f"{state.search_steps} steps"))
    if history.rounds:
        losses = history.rounds[-1].live_losses
        facts.append(("last training loss", loss_text(sum(losses) / len(losses) if losses else math.nan)))
    counted = account(history.rounds, history.abandoned)
    if counted.is_counted:
        again = f", {counted.lost:,} more in rounds that were repeated" if counted.lost else ""
        facts.append(("samples", f"{counted.total:,}{again}"))
    return tuple(facts)


def headline(history: History) -> str:
    """The run in one sentence."""
    state = history.state
    search, config = state.search, state.config
    if state.failure is not None:
        return state.failure.message
    if search is None:
        name = type(config.controller).__name__.lower()
        return f"controller {name} from max_lr {rate_text(config.max_lr[0])}; no search in this run."
    tried = len(search.points)
    dead = sum(p.is_dead for p in search.points)
    if search.result is None:
        return f"The search goes on: {tried} candidates tried so far, {dead} of them dead."
    found = config.max_lr[0] * math.exp(search.result)
    text = (
        f"Started from max_lr {rate_text(config.max_lr[0])}, found {rate_text(found)} "
        f"({_factor(math.exp(search.result))}) with {tried} candidates, {dead} of them dead, "
        f"in {state.search_steps} of {config.total_steps} steps."
    )
    if search.is_suspect:
        text += " The result is suspect: the candidate just above the best one died."
    if not search.is_confirmed:
        text += " The scouts ended unconfirmed."
    return text


def notes_of(history: History) -> tuple[str, ...]:
    """What people were told along the way, in order, each once."""
    notes = [*history.initial.notes, *(note for r in history.rounds for note in r.upcoming.notes)]
    return tuple(dict.fromkeys(notes))


def _factor(factor: float) -> str:
    if factor >= 1:
        return f"{factor:.3g} times higher"
    return f"{1 / factor:.3g} times lower"
