"""Rows of the dashboard *Run* about machinery: how replicas meet, and how they come and go."""

from __future__ import annotations

from deploy.grafana.panels import Panel, Query, Row
from deploy.grafana.selectors import RATE, SELF, newest

SYNC = Row(
    title="Sync",
    panels=(
        Panel(
            title="Time of a sync",
            unit="s",
            width=8,
            is_logarithmic=True,
            shows="How long a boundary takes: gathering, judging, averaging, exchanging.",
            remedy=(
                "99 % far above the median: one worker is late, look for a slow node. Both high: the "
                "network, or the controller (its own latency is on the Fleet dashboard)."
            ),
            queries=tuple(
                Query(
                    expr=(
                        f"histogram_quantile({q}, sum by (run, le) "
                        f"(rate(hdet_sync_duration_seconds_bucket{{{SELF}}}[{RATE}])))"
                    ),
                    legend=name,
                )
                for q, name in ((0.5, "median"), (0.99, "99 %"))
            ),
        ),
        Panel(
            title="Bytes of averages",
            unit="Bps",
            width=8,
            is_from_zero=True,
            shows="Bytes that averages move per second. Plain training averages nothing.",
            remedy="Too much for the network: raise sync_every.",
            queries=(
                Query(expr=f"sum by (run) (rate(hdet_sync_bytes_total{{{SELF}}}[{RATE}]))", legend="bytes"),
            ),
        ),
        Panel(
            title="Failed syncs",
            unit="none",
            width=8,
            is_from_zero=True,
            shows="Boundaries that failed, by reason, since the run began.",
            remedy="A timeout names who was missing in the run's log. Grows: restart that node.",
            queries=(
                Query(expr=f"sum by (run, reason) (hdet_sync_failures_total{{{SELF}}})", legend="{{reason}}"),
            ),
        ),
        Panel(
            title="Since the last sync and checkpoint",
            unit="s",
            width=8,
            is_from_zero=True,
            shows=(
                "A saw-tooth each: back to 0 with every boundary, every checkpoint. The expected round "
                "beside them."
            ),
            remedy="Climbs past a few expected rounds: HDETSyncStalled or HDETCheckpointStale will say so.",
            queries=(
                Query(expr=f"time() - {newest('hdet_last_sync_timestamp_seconds')}", legend="sync"),
                Query(
                    expr=f"time() - {newest('hdet_last_checkpoint_timestamp_seconds')}", legend="checkpoint"
                ),
                Query(expr=newest("hdet_round_expected_seconds"), legend="expected round", is_thick=True),
            ),
        ),
        Panel(
            title="Steps per second",
            unit="cps",
            width=8,
            is_from_zero=True,
            shows="Optimizer steps per second.",
            remedy=(
                "Falls while replicas are present: input or a slow node; the slowest replica sets the pace."
            ),
            queries=(
                Query(
                    expr=f"clamp_min(max by (run) (deriv(hdet_step{{{SELF}}}[{RATE}])), 0)", legend="steps"
                ),
            ),
        ),
        Panel(
            title="Samples per second",
            unit="cps",
            width=8,
            is_from_zero=True,
            shows="Training samples per second, where the loop passes its sampler to `attach`.",
            remedy="As for steps per second.",
            queries=(
                Query(expr=f"sum by (run) (rate(hdet_samples_total{{{SELF}}}[{RATE}]))", legend="samples"),
            ),
        ),
    ),
)

REPLICAS = Row(
    title="Replicas",
    panels=(
        Panel(
            title="Replicas wanted and present",
            unit="none",
            width=8,
            is_from_zero=True,
            shows="How many take part, against how many were asked for.",
            remedy="A dip of a minute or two is a restart. One that stays fires HDETReplicasBelowDesired.",
            queries=(
                Query(
                    expr=f'max by (run) (hdet_replicas{{state="wanted", {SELF}}})',
                    legend="wanted",
                    is_thick=True,
                ),
                Query(expr=f'max by (run) (hdet_replicas{{state="present", {SELF}}})', legend="present"),
            ),
        ),
        Panel(
            title="Failures by reason",
            unit="none",
            width=8,
            is_from_zero=True,
            shows="Replicas lost since the run began, by reason.",
            remedy="`hdet logs` around a step of the line. Preempted is expected on spot nodes.",
            queries=(
                Query(
                    expr=f"sum by (run, reason) (hdet_replica_failures_total{{{SELF}}})", legend="{{reason}}"
                ),
            ),
        ),
        Panel(
            title="Quarantines and rollbacks",
            unit="none",
            width=8,
            is_from_zero=True,
            shows="Replicas left out of an average, and rollbacks, since the run began.",
            remedy=(
                "Several in a row end the run (max_rollbacks): lower the rate before that, or look at the "
                "data."
            ),
            queries=(
                Query(
                    expr=f"sum by (run, reason) (hdet_replica_quarantines_total{{{SELF}}})",
                    legend="quarantined: {{reason}}",
                ),
                Query(
                    expr=f"sum by (run) (hdet_rollbacks_total{{{SELF}}})",
                    legend="rolled back",
                ),
            ),
        ),
        Panel(
            title="Recoveries",
            unit="s",
            width=8,
            is_from_zero=True,
            shows="Mean time from the loss of a replica to the first round after it.",
            remedy=(
                "Above two minutes: images are pulled, or nodes come slowly. The operations page lists the "
                "settings."
            ),
            queries=(
                Query(
                    expr=(
                        f"sum by (run) (hdet_recovery_duration_seconds_sum{{{SELF}}}) "
                        f"/ sum by (run) (hdet_recovery_duration_seconds_count{{{SELF}}})"
                    ),
                    legend="mean",
                ),
            ),
        ),
        Panel(
            title="Resizes",
            unit="none",
            width=8,
            is_from_zero=True,
            shows="How often the number of replicas grew or shrank.",
            remedy="Back and forth all day: the cluster is too tight for this job's minimum and maximum.",
            queries=(
                Query(expr=f"sum by (run, direction) (hdet_resizes_total{{{SELF}}})", legend="{{direction}}"),
            ),
        ),
        Panel(
            title="Overrides",
            unit="none",
            width=8,
            is_from_zero=True,
            shows="Overrides since the run began, by what became of them, and those in force.",
            remedy=(
                "refused: `hdet schedule show` has the reason. In force for a day: HDETOverrideActiveTooLong."
            ),
            queries=(
                Query(
                    expr=f"sum by (run, result) (hdet_schedule_overrides_total{{{SELF}}})",
                    legend="{{result}}",
                ),
                Query(expr=newest("hdet_override_active"), legend="in force", is_thick=True),
            ),
        ),
    ),
)
