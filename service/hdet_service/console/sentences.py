"""Events and numbers in words that people read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from hdet_ray.view.numbers import duration_text, loss_text, rate_text

HIDDEN = frozenset({"round"})
"""Events that charts tell better than a list."""

_OVERRIDE_STATES = {
    "pending": "waits for its round",
    "applied": "is in force",
    "expired": "has run its time",
    "removed": "was taken back",
    "refused": "was refused",
}


def sentence(type: str, data: Mapping[str, Any]) -> str:
    """What happened, in a sentence."""
    if type == "state":
        state, reason = str(data.get("state")), words(str(data.get("reason")))
        said = [part for part in (reason, str(data.get("message") or "")) if part.lower() != state.lower()]
        return f"{state}: {'. '.join(part for part in said if part)}"
    if type == "override":
        state = str(data.get("state"))
        at = data.get("applied_round")
        where = f" since round {at}" if state == "applied" and at is not None else ""
        why = f": {data['refusal']}" if data.get("refusal") else ""
        return f"Override {_short(data.get('id'))} {_OVERRIDE_STATES.get(state, state)}{where}{why}"
    say = _WORDS.get(type)
    return say(data) if say is not None else _fields(data)


def words(reason: str) -> str:
    """``WaitingForSlot`` as words."""
    spaced = "".join(f" {c.lower()}" if c.isupper() else c for c in reason).strip()
    return spaced[:1].upper() + spaced[1:]


def _attempt(data: Mapping[str, Any]) -> str:
    text = f"Attempt {data.get('attempt')} began at round {data.get('round')}"
    text += f" with {data.get('replicas')} replicas"
    abandoned = data.get("abandoned_rounds") or 0
    return text + (f"; {abandoned} later rounds were given up" if abandoned else "")


def _checkpoint(data: Mapping[str, Any]) -> str:
    return f"Checkpoint of round {data.get('round')}, step {data.get('step')}"


def _rollback(data: Mapping[str, Any]) -> str:
    culprits = ", ".join(str(r) for r in data.get("culprits") or ())
    blamed = f" (replica {culprits})" if culprits else ""
    return f"Round {data.get('round')} was unhealthy{blamed}: back to the boundary before it"


def _quarantine(data: Mapping[str, Any]) -> str:
    return f"Replica {data.get('replica')} was left out of round {data.get('round')}: {data.get('reason')}"


def _resize(data: Mapping[str, Any]) -> str:
    return f"From {data.get('from')} to {data.get('to')} replicas at round {data.get('round')}"


def _recovery(data: Mapping[str, Any]) -> str:
    return (
        f"Training again after {duration_text(data.get('seconds'))} with {data.get('replicas')} replicas, "
        f"from round {data.get('round')}"
    )


def _retry(data: Mapping[str, Any]) -> str:
    return f"Failure {data.get('failures')} ({data.get('reason')}): {data.get('message')}"


def _audit(data: Mapping[str, Any]) -> str:
    why = f": {data['reason']}" if data.get("reason") else ""
    return f"{data.get('actor')} asked for {str(data.get('action')).replace('.', ' ')}{why}"


def _ledger(data: Mapping[str, Any]) -> str:
    first = data.get("starts_at_round")
    match data:
        case {"thinned": True, "abandoned_rounds": number}:
            return f"{number} rounds of abandoned attempts are summaries now"
        case {"thinned": True}:
            return f"Rounds before {first} are summaries now"
        case {"thinned": False}:
            return f"The ledger stays long, round {data.get('round')} can't be thinned: {data.get('message')}"
    return f"The ledger starts anew at round {first}"


_WORDS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "attempt": _attempt,
    "checkpoint": _checkpoint,
    "rollback": _rollback,
    "quarantine": _quarantine,
    "resize": _resize,
    "recovery": _recovery,
    "retry": _retry,
    "audit": _audit,
    "note": lambda data: str(data.get("text", "")),
    "ledger": _ledger,
}


def _fields(data: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in data.items() if value not in (None, "", {}))


def _short(id: Any) -> str:
    return str(id)[-6:]


def override_text(body: Mapping[str, Any]) -> str:
    """``lr × 0.5, group 0``."""
    value = rate_text(body.get("value"))
    text = f"{body.get('hparam')} {'×' if body.get('op') == 'scale' else '='} {value}"
    return text if body.get("group") is None else f"{text}, group {body['group']}"


def time_text(at_s: float | None) -> str:
    """``2026-11-24 14:31:05``, UTC."""
    return "–" if at_s is None else datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%S")


def ago_text(at_s: float | None, now_s: float) -> str:
    """``3 min ago``."""
    if at_s is None:
        return "–"
    age_s = max(now_s - at_s, 0.0)
    return "just now" if age_s < 5 else f"{_coarse(age_s)} ago"


def _coarse(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"


__all__ = [
    "HIDDEN",
    "ago_text",
    "duration_text",
    "loss_text",
    "override_text",
    "rate_text",
    "sentence",
    "time_text",
    "words",
]
