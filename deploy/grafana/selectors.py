"""Selecting one run's series, the same way in every panel of the dashboard *Run*."""

from __future__ import annotations

SELF = 'run="$run", namespace=~"$namespace"'
RATE = "$__rate_interval"
EVENT_STEP = "1m"
"""Events are looked for in steps of this length: each shows up in exactly one."""


def newest(metric: str, *labels: str) -> str:
    """The newest value, whichever controller's pod it comes from."""
    return f"max by ({', '.join(('run', *labels))}) ({metric}{{{SELF}}})"


def happened(counter: str, *labels: str) -> str:
    """Above 0 where a counter went up, by these labels."""
    # A difference, not increase(): no event falls between two windows.
    by = ", ".join(("run", *labels))
    return (
        f"sum by ({by}) ({counter}{{{SELF}}}) - sum by ({by}) ({counter}{{{SELF}}} offset {EVENT_STEP}) > 0"
    )
