"""Times as people read them: how long ago, how long until."""

from __future__ import annotations

from datetime import UTC, datetime

from hdet_ray.view.numbers import duration_text

_DAY_S = 86_400


def ago_text(at: str | float | None, now: datetime | None = None) -> str:
    """``3 min 05 s ago``; ``2 d ago`` beyond a day.

    Args:
        at: RFC 3339, or seconds since the epoch; None gives a dash.
    """
    if at is None:
        return "–"
    seconds = ((now or datetime.now(UTC)) - _moment(at)).total_seconds()
    if seconds >= _DAY_S:
        return f"{seconds / _DAY_S:.0f} d ago"
    return f"{duration_text(max(seconds, 0.0))} ago"


def clock_text(at: str | float | None) -> str:
    """The time of day here, with the date where it was another day."""
    if at is None:
        return "–"
    here = _moment(at).astimezone()
    is_today = here.date() == datetime.now().astimezone().date()
    return here.strftime("%H:%M:%S" if is_today else "%Y-%m-%d %H:%M:%S")


def _moment(at: str | float) -> datetime:
    if isinstance(at, int | float):
        return datetime.fromtimestamp(at, UTC)
    moment = datetime.fromisoformat(at)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
