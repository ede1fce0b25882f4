"""What is recorded and what wakes somebody, as data.

Each alert names what a person can do something about, waits out what heals by itself (a group restarts
in one or two minutes, a node comes in ten), and looks only at jobs that should be training: a paused
job wants no replicas, and a finished one has no series. Expressions keep to what Prometheus 2.42 reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from deploy.prometheus.time_scale import HOUR, MINUTE, TimeScale

Severity = Literal["critical", "warning", "info"]

SAME_RUN = "on (namespace, run)"
PER_RUN = "by (namespace, run)"
_EXPECTED = f"max {PER_RUN} (hdet_round_expected_seconds)"

STALLED_ROUNDS = 5
"""A round may take this many times as long as the one before would make it."""
STALLED_FLOOR_S = 10 * MINUTE
FIRST_ROUND_S = 2 * HOUR
"""Before the first round is over, nobody knows how long one takes."""
STALE_ROUNDS = 20
STALE_FLOOR_S = 30 * MINUTE
EVENT_WINDOW_S = 15 * MINUTE
"""An event keeps its alert up for this long: one event, one alert."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingRule:
    """A series computed once, that several alerts share. Panels don't: they work without our rules."""

    record: str
    expr: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertingRule:
    """When to call for help, whom, and what to tell them."""

    alert: str
    expr: str
    wait_s: float
    """How long it must hold before it fires (``for``), in seconds before scaling."""
    severity: Severity
    """critical: training or the controller stands still; warning: soon or partly; info: look some time."""
    summary: str
    description: str

    @property
    def anchor(self) -> str:
        """Its place in ``docs/operations.md``."""
        return self.alert.lower()


def recording_rules() -> tuple[RecordingRule, ...]:
    """What several alerts look at. ``max`` takes off the labels that change with a restarted pod."""
    wanted, since = "run:hdet_replicas_wanted:max", "run:hdet_training_since:timestamp_seconds"
    return (
        RecordingRule(record=wanted, expr=f'max {PER_RUN} (hdet_replicas{{state="wanted"}})'),
        RecordingRule(
            record="run:hdet_replicas_present:max",
            expr=f'max {PER_RUN} (hdet_replicas{{state="present"}})',
        ),
        RecordingRule(
            record=since,
            # Paused: since now. Else: as a moment ago. Never seen before: since now.
            expr=(
                f"0 * ({wanted} == 0) + time()\nor {since} and {SAME_RUN} {wanted}\nor 0 * {wanted} + time()"
            ),
        ),
        RecordingRule(
            record="run:hdet_sync_age:seconds", expr=_age("hdet_last_sync_timestamp_seconds", since)
        ),
        RecordingRule(
            record="run:hdet_checkpoint_age:seconds",
            expr=_age("hdet_last_checkpoint_timestamp_seconds", since),
        ),
    )


def _age(last: str, since: str) -> str:
    # Time in which it did not happen although it should have: a job that was paused for a day is not late.
    return f'time() - max {PER_RUN} ({last} or label_replace({since}, "from", "since", "", ""))'


def alerting_rules(scale: TimeScale) -> tuple[AlertingRule, ...]:
    """Every alert that is shipped."""
    return (
        _controller_down(scale),
        _sync_stalled(scale),
        _replicas_below_desired(),
        _replica_unhealthy(scale),
        _checkpoint_stale(scale),
        _base_at_bound(),
        _override_active_too_long(scale),
    )


def _controller_down(scale: TimeScale) -> AlertingRule:
    seen = f"count by (namespace) (last_over_time(hdet_build_info[{scale.span(HOUR)}]))"
    return AlertingRule(
        alert="HDETControllerDown",
        # One of several controllers is missed by its namespace; absent() says it where none was ever seen.
        expr=(
            f"({seen} unless count by (namespace) (hdet_build_info))\n"
            f"or (absent(hdet_build_info) unless on () {seen})"
        ),
        wait_s=2 * MINUTE,
        severity="critical",
        summary="The HDET controller is not scraped",
        description=(
            "No metrics come from the controller{{ with $labels.namespace }} in namespace {{ . }}{{ end }}. "
            "Jobs go on training and decide for themselves, but nobody can submit, steer or see them."
        ),
    )


def _sync_stalled(scale: TimeScale) -> AlertingRule:
    patience = f"clamp_min({STALLED_ROUNDS} * {_EXPECTED}, {scale.seconds(STALLED_FLOOR_S)})"
    first = f"0 * run:hdet_replicas_wanted:max + {scale.seconds(FIRST_ROUND_S)}"
    return AlertingRule(
        alert="HDETSyncStalled",
        # Relative to the round's own length: an hour is long for 20 steps and usual for 1,000.
        expr=(
            f"run:hdet_sync_age:seconds\n"
            f"> {SAME_RUN} ({patience} or {SAME_RUN} {first})\n"
            f"and {SAME_RUN} run:hdet_replicas_wanted:max > 0"
        ),
        wait_s=2 * MINUTE,
        severity="critical",
        summary="Run {{ $labels.run }} has stopped syncing",
        description=(
            "The replicas of run {{ $labels.run }} have not met for {{ $value | humanizeDuration }}, more "
            f"than {STALLED_ROUNDS} times what a round takes. A worker hangs, or the group stays away."
        ),
    )


def _replicas_below_desired() -> AlertingRule:
    return AlertingRule(
        alert="HDETReplicasBelowDesired",
        expr=(
            f"run:hdet_replicas_wanted:max - {SAME_RUN} run:hdet_replicas_present:max > 0\n"
            f"and {SAME_RUN} run:hdet_replicas_wanted:max > 0"
        ),
        # A group restarts in one or two minutes, a node of a cloud comes in under ten.
        wait_s=10 * MINUTE,
        severity="warning",
        summary="Run {{ $labels.run }} lacks {{ $value }} replicas",
        description=(
            "Run {{ $labels.run }} trains with {{ $value }} replicas fewer than it asked for, or waits for "
            "them, and restarts have not brought them back."
        ),
    )


def _replica_unhealthy(scale: TimeScale) -> AlertingRule:
    window = scale.span(EVENT_WINDOW_S)
    # A rollback for health goes on counting rounds. One that an operator asks for goes back to an earlier
    # round, and so does a restart.
    rollbacks = (
        f"sum {PER_RUN} (increase(hdet_rollbacks_total[{window}])) > 0\n"
        f"    unless {SAME_RUN} max {PER_RUN} (resets(hdet_round[{window}])) > 0"
    )
    return AlertingRule(
        alert="HDETReplicaUnhealthy",
        expr=(
            f"(\n"
            f"  sum by (namespace, run, reason) (increase(hdet_replica_quarantines_total[{window}])) > 0\n"
            f"  or label_replace(\n"
            f"    {rollbacks},\n"
            f'    "reason", "rollback", "", ""\n'
            f"  )\n"
            f")\n"
            f"and {SAME_RUN} run:hdet_replicas_wanted:max > 0"
        ),
        wait_s=0.0,
        severity="warning",
        summary="Run {{ $labels.run }} had unhealthy replicas ({{ $labels.reason }})",
        description=(
            "A replica of run {{ $labels.run }} was left out of the average, or all were and the run went "
            "back to its newest boundary. It goes on; several rollbacks in a row end it."
        ),
    )


def _checkpoint_stale(scale: TimeScale) -> AlertingRule:
    patience = f"clamp_min({STALE_ROUNDS} * {_EXPECTED}, {scale.seconds(STALE_FLOOR_S)})"
    return AlertingRule(
        alert="HDETCheckpointStale",
        # A group that is down makes no progress to be saved: other alerts are about that.
        expr=(
            f"run:hdet_checkpoint_age:seconds\n"
            f"> {SAME_RUN} {patience}\n"
            f"and {SAME_RUN} run:hdet_replicas_present:max > 0"
        ),
        wait_s=5 * MINUTE,
        severity="warning",
        summary="Run {{ $labels.run }} has no recent checkpoint",
        description=(
            "Run {{ $labels.run }} trains, but saved nothing for {{ $value | humanizeDuration }}, more than "
            f"{STALE_ROUNDS} rounds. If it dies now, that work is lost."
        ),
    )


def _base_at_bound() -> AlertingRule:
    return AlertingRule(
        alert="HDETBaseAtBound",
        expr=(
            f"max by (namespace, run, hparam, group) (hdet_hparam_at_bound) == 1\n"
            f"and {SAME_RUN} run:hdet_replicas_wanted:max > 0"
        ),
        wait_s=10 * MINUTE,
        severity="warning",
        summary="Run {{ $labels.run }}: {{ $labels.hparam }} is at its bound",
        description=(
            "{{ $labels.hparam }} of group {{ $labels.group }} in run {{ $labels.run }} sits at one "
            "of its bounds: the better value probably lies outside."
        ),
    )


def _override_active_too_long(scale: TimeScale) -> AlertingRule:
    # Bridges the minutes in which a restarting controller gives no series.
    active = f"max {PER_RUN} (max_over_time(hdet_override_active[{scale.span(10 * MINUTE)}])) > 0"
    return AlertingRule(
        alert="HDETOverrideActiveTooLong",
        expr=f"{active}\nand {SAME_RUN} run:hdet_replicas_wanted:max > 0",
        wait_s=24 * HOUR,
        severity="info",
        summary="Run {{ $labels.run }} has been under an override for a day",
        description=(
            "{{ $value }} override(s) of run {{ $labels.run }} hold a value that the schedule would move. "
            "Nobody may remember why."
        ),
    )
