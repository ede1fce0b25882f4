"""Asking Prometheus what a dashboard asks it, over its HTTP API."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

_PLACE = re.compile(r"\{\{\s*(\w+)\s*\}\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line: its labels, and its values over time."""

    labels: Mapping[str, str]
    times_s: tuple[float, ...]
    values: tuple[float, ...]

    def named(self, legend: str) -> str:
        """The line's name, its labels put into the legend's places."""
        return _PLACE.sub(lambda place: self.labels.get(place[1], ""), legend)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The time that is looked at, in seconds since the epoch."""

    start_s: float
    end_s: float
    step_s: float

    def __post_init__(self) -> None:
        if not self.start_s < self.end_s or self.step_s <= 0:
            raise ValueError(
                f"window from {self.start_s} to {self.end_s} by {self.step_s} s holds nothing; "
                f"its end comes after its start, and its step is above 0"
            )


class Prometheus:
    """A Prometheus server.

    Args:
        url: Where it listens, as ``http://127.0.0.1:9090``.
    """

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=30.0)

    def ranged(self, expr: str, window: Window) -> tuple[Series, ...]:
        """An expression's series over the window.

        Raises:
            ValueError: Prometheus refuses the expression; the text says why.
        """
        asked = {"query": expr, "start": window.start_s, "end": window.end_s, "step": window.step_s}
        found: Sequence[Mapping[str, Any]] = self.get("query_range", **asked)["result"]
        return tuple(
            Series(
                labels=one["metric"],
                times_s=tuple(float(at) for at, _ in one["values"]),
                values=tuple(float(value) for _, value in one["values"]),
            )
            for one in found
        )

    def get(self, call: str, **parameters: object) -> Any:
        """What a call of the API answers under ``data``.

        Raises:
            ValueError: it answers with an error.
        """
        answer = self._client.get(f"/api/v1/{call}", params={k: str(v) for k, v in parameters.items()})
        body = answer.json()
        if body["status"] != "success":
            raise ValueError(f"Prometheus refused {call} {parameters}: {body.get('error')}")
        return body["data"]

    def close(self) -> None:
        """Give its connections back."""
        self._client.close()


def expand(expr: str, variables: Mapping[str, str]) -> str:
    """A panel's expression with its variables' values, as Grafana puts them in.

    Raises:
        ValueError: a variable has no value.
    """
    for name in sorted(variables, key=len, reverse=True):
        expr = expr.replace(f"${name}", variables[name])
    left = re.search(r"\$\w+", expr)
    if left:
        raise ValueError(f"{left[0]} in {expr!r} has no value; give one of {sorted(variables)}")
    return expr


def variables_for(run: str, scrape_interval_s: float) -> dict[str, str]:
    """Values of the dashboards' variables; rates look at four scrapes, as Grafana's do."""
    return {"run": run, "namespace": ".*", "__rate_interval": f"{round(4 * scrape_interval_s * 1000)}ms"}
