"""The dashboard *Run*: one job's replicas, what they try, what they find, and what befell them."""

from __future__ import annotations

from deploy.grafana.panels import Board, Event, Panel, Query, Row
from deploy.grafana.run_learning import RATES, SEARCH
from deploy.grafana.run_machinery import REPLICAS, SYNC
from deploy.grafana.selectors import SELF, happened, newest

_NOW = Row(
    title="Now",
    panels=(
        Panel(
            title="Step",
            kind="stat",
            unit="none",
            width=3,
            height=4,
            shows="Optimizer steps done.",
            remedy="Goes back after a rollback or a restart, which is right. Stands still: see *last sync*.",
            queries=(Query(expr=newest("hdet_step"), legend="step"),),
        ),
        Panel(
            title="Round",
            kind="stat",
            unit="none",
            width=3,
            height=4,
            shows="Rounds done; replicas meet at the end of each.",
            remedy="As for the step.",
            queries=(Query(expr=newest("hdet_round"), legend="round"),),
        ),
        Panel(
            title="Replicas present",
            kind="stat",
            unit="none",
            width=3,
            height=4,
            warns_below=1,
            shows="Replicas in the newest report; 0 while the group restarts.",
            remedy="0 for minutes: `hdet jobs show` has the reason, the row *Replicas* below its history.",
            queries=(
                Query(expr=f'max by (run) (hdet_replicas{{state="present", {SELF}}})', legend="present"),
            ),
        ),
        Panel(
            title="Since the last sync",
            kind="stat",
            unit="s",
            width=3,
            height=4,
            warns_above=600,
            shows="Time since replicas last met.",
            remedy="Longer than a few rounds: a worker hangs. HDETSyncStalled in the operations page.",
            queries=(Query(expr=f"time() - {newest('hdet_last_sync_timestamp_seconds')}", legend="age"),),
        ),
        Panel(
            title="Since the last checkpoint",
            kind="stat",
            unit="s",
            width=3,
            height=4,
            warns_above=1800,
            shows="Work that would be lost if the run died now.",
            remedy="Storage full, slow or gone: HDETCheckpointStale in the operations page.",
            queries=(
                Query(expr=f"time() - {newest('hdet_last_checkpoint_timestamp_seconds')}", legend="age"),
            ),
        ),
        Panel(
            title="Overrides in force",
            kind="stat",
            unit="none",
            width=3,
            height=4,
            warns_above=1,
            shows="Values that an operator holds.",
            remedy="`hdet schedule show` lists them with who and why; remove what nobody needs.",
            queries=(Query(expr=newest("hdet_override_active"), legend="overrides"),),
        ),
        Panel(
            title="Phase",
            kind="states",
            unit="none",
            width=6,
            height=4,
            shows="What rounds are for: scout and pairs search the rate, train and fan_out train.",
            remedy="scout for more than five rounds or pairs for more than three: read the run's warnings.",
            queries=(Query(expr=f"{newest('hdet_phase', 'phase')} == 1", legend="{{phase}}"),),
        ),
    ),
)

RUN = Board(
    uid="hdet-run",
    title="HDET / Run",
    description="One run: the rates that its replicas try, what they find, and what befell them.",
    rows=(_NOW, RATES, SEARCH, SYNC, REPLICAS),
    events=(
        Event(
            name="Overrides",
            expr=happened("hdet_schedule_overrides_total", "result"),
            title="override {{result}}",
            color="purple",
        ),
        Event(
            name="Resizes",
            expr=happened("hdet_resizes_total", "direction"),
            title="resized {{direction}}",
            color="orange",
        ),
        Event(
            name="Rollbacks",
            expr=happened("hdet_rollbacks_total"),
            title="rolled back",
            color="red",
        ),
        Event(
            name="Lost replicas",
            expr=happened("hdet_replica_failures_total", "reason"),
            title="lost: {{reason}}",
            color="yellow",
        ),
    ),
    has_run=True,
    window="now-1h",
)
