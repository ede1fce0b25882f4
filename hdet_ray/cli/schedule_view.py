"""A schedule on a terminal, and what an override would change of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hdet_ray.view.numbers import loss_text, rate_text

if TYPE_CHECKING:
    from hdet_service.client import Schedule

_MAX_ROWS = 24
_PHASE_STYLES = {"scout": "yellow", "pairs": "magenta", "train": "cyan", "fan_out": "cyan"}
_OVERRIDE_STYLES = {"pending": "yellow", "applied": "green", "refused": "red"}


def schedule_view(schedule: Schedule) -> RenderableType:
    """Where the schedule is, its base values, its replicas, its search, its overrides."""
    phase = schedule["phase"]
    head = Text.assemble(
        (phase, f"bold {_PHASE_STYLES.get(phase, '')}"),
        f"   round {schedule['round']}   step {schedule['step']}",
        (f"   revision {schedule['revision']}", "dim"),
    )
    parts: list[RenderableType] = [head, _part("base", _base_table(schedule))]
    if schedule["replicas"]:
        parts.append(_part("replicas", _replicas_table(schedule["replicas"])))
    if schedule["points"]:
        parts.append(_part("search", _points_table(schedule["points"])))
    if schedule["overrides"]:
        parts.append(_part("overrides", _overrides_table(schedule["overrides"])))
    return Group(*parts)


def preview_view(preview: Mapping[str, Any]) -> RenderableType:
    """What an override would change, before and after."""
    due = preview.get("applies_at_round")
    when = "after the search" if due is None else f"at round {due}"
    parts: list[RenderableType] = [Text.assemble("would apply ", (when, "bold"))]
    if preview.get("ends_search"):
        parts.append(Text("! it would end the search", style="yellow"))
    table = _table("hyperparameter", "group", "from", "to", "base from", "base to")
    for change in preview.get("changes", []):
        base = change.get("base") or {}
        numbers = [change["from"], change["to"], base.get("from"), base.get("to")]
        table.add_row(change["hparam"], str(change["group"]), *(rate_text(number) for number in numbers))
    parts.append(_part("changes", table) if table.row_count else Text("no value would change", style="dim"))
    return Group(*parts)


def _part(title: str, body: RenderableType) -> RenderableType:
    return Padding(Group(Text(title, style="bold"), body), (1, 0, 0, 2), expand=False)


def _base_table(schedule: Schedule) -> Table:
    table = _table("hyperparameter", "group", "base", "one-cycle", "peak", "bounds")
    for hparam, group, base in _entries(schedule["base"]):
        bounds = schedule["bounds"].get(hparam)
        table.add_row(
            hparam,
            group,
            rate_text(base),
            rate_text(_at(schedule["one_cycle"], hparam, group)),
            rate_text(_at(schedule["peak"], hparam, group)),
            f"{rate_text(bounds[0])} … {rate_text(bounds[1])}" if bounds else "",
        )
    return table


def _replicas_table(replicas: list[dict[str, Any]]) -> Table:
    table = _table("replica", "team", "values")
    for replica in replicas[:_MAX_ROWS]:
        team = replica.get("team")
        values = ", ".join(f"{h} {rate_text(value)}" for h, _, value in _entries(replica.get("values", {})))
        table.add_row(str(replica["replica"]), "–" if team is None else str(team), values)
    if len(replicas) > _MAX_ROWS:
        table.add_row("…", "", f"{len(replicas) - _MAX_ROWS} more", style="dim")
    return table


def _points_table(points: Sequence[Mapping[str, Any]]) -> Table:
    """The newest candidates, by rising rate."""
    table = _table("round", "phase", "rate", "loss", "")
    for point in sorted(points[-_MAX_ROWS:], key=lambda p: p["value"]):
        is_dead = bool(point["dead"])
        table.add_row(
            str(point["round"]),
            str(point["phase"]),
            rate_text(point["value"]),
            "not finite" if point.get("nonfinite") else loss_text(point["loss"]),
            "dead" if is_dead else "",
            style="red" if is_dead else "",
        )
    return table


def _overrides_table(overrides: Iterable[Mapping[str, Any]]) -> Table:
    table = _table("id", "state", "what", "since", "by", "reason")
    for item in overrides:
        state = str(item["state"])
        what = f"{item.get('hparam', '')} {item.get('op', '')} {item.get('value', '')}"
        since = item.get("applied_round")
        table.add_row(
            str(item["id"]),
            Text(state, style=_OVERRIDE_STYLES.get(state, "dim")),
            what.strip(),
            "" if since is None else f"round {since}",
            str(item.get("created_by", "")),
            str(item.get("reason") or ""),
        )
    return table


def _table(*headings: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _entries(values: Mapping[str, Mapping[str, float]]) -> list[tuple[str, str, float]]:
    return [(hparam, group, value) for hparam, groups in values.items() for group, value in groups.items()]


def _at(values: Mapping[str, Mapping[str, float]], hparam: str, group: str) -> float | None:
    return values.get(hparam, {}).get(group)
