"""The dashboard *Fleet*: all jobs of a cluster, and how the controller is."""

from __future__ import annotations

from deploy.grafana.panels import Board, Event, Panel, Query, Row

NS = 'namespace=~"$namespace"'
RATE = "$__rate_interval"

_JOBS = Row(
    title="Jobs",
    panels=(
        Panel(
            title="Controller",
            kind="stat",
            unit="none",
            width=4,
            warns_below=1,
            shows="Controllers that answer, by version.",
            remedy="None: see HDETControllerDown in the operations page. Jobs go on training meanwhile.",
            queries=(Query(expr=f"count by (version) (hdet_build_info{{{NS}}})", legend="{{version}}"),),
        ),
        Panel(
            title="Alerts firing",
            kind="stat",
            unit="none",
            width=4,
            warns_above=1,
            shows="Alerts of ours that fire now.",
            remedy="Open the alert's section in the operations page; each has its own.",
            queries=(
                Query(
                    expr=f'count(ALERTS{{alertname=~"HDET.*", alertstate="firing", {NS}}}) or vector(0)',
                    legend="firing",
                ),
            ),
        ),
        Panel(
            title="Jobs by state",
            kind="stack",
            unit="none",
            width=8,
            is_from_zero=True,
            shows="Jobs that the controller holds, by where they stand.",
            remedy=(
                "Many QUEUED: raise max_running_jobs or wait. Many STARTING: the cluster lacks resources, "
                "see Ray's dashboard. FAILED grows: `hdet jobs list` shows each one's reason."
            ),
            queries=(Query(expr=f"sum by (state) (hdet_jobs{{{NS}}})", legend="{{state}}"),),
        ),
        Panel(
            title="Submissions",
            unit="cps",
            width=8,
            is_from_zero=True,
            shows="Jobs handed in per second, by what became of the request.",
            remedy=(
                "Refusals: the client got the offending fields. Repeats: a client retries; look at its logs."
            ),
            queries=(
                Query(
                    expr=f"sum by (result) (rate(hdet_job_submissions_total{{{NS}}}[{RATE}]))",
                    legend="{{result}}",
                ),
            ),
        ),
    ),
)

_REPLICAS = Row(
    title="Replicas",
    panels=(
        Panel(
            title="Replicas wanted and present",
            unit="none",
            is_from_zero=True,
            shows="Replicas that running jobs ask for, and those that take part, over all jobs.",
            remedy=(
                "A dip of a minute or two is a restart. A gap that stays: nodes are lacking or die; the Run "
                "dashboard of the jobs below says whose, Ray's dashboard says why."
            ),
            queries=(
                Query(
                    expr=f'sum(hdet_replicas{{state="wanted", {NS}}})',
                    legend="wanted",
                    is_thick=True,
                ),
                Query(expr=f'sum(hdet_replicas{{state="present", {NS}}})', legend="present"),
            ),
        ),
        Panel(
            title="Runs that lack replicas",
            unit="none",
            is_from_zero=True,
            shows="Replicas wanted but not present, for each run.",
            remedy="Open that run's dashboard; past ten minutes HDETReplicasBelowDesired fires.",
            queries=(
                Query(
                    expr=(
                        f'max by (run) (hdet_replicas{{state="wanted", {NS}}}) '
                        f'- on (run) max by (run) (hdet_replicas{{state="present", {NS}}})'
                    ),
                    legend="{{run}}",
                ),
            ),
        ),
        Panel(
            title="Replica failures by reason",
            unit="none",
            is_from_zero=True,
            shows="Replicas lost, in each interval, by reason, over all jobs.",
            remedy=(
                "One reason for many runs: a node or the network. One run alone: its code or its memory; "
                "read `hdet logs`. Preempted: expected on spot nodes."
            ),
            queries=(
                Query(
                    expr=f"sum by (reason) (increase(hdet_replica_failures_total{{{NS}}}[{RATE}]))",
                    legend="{{reason}}",
                ),
            ),
        ),
        Panel(
            title="Quarantines, rollbacks and failed syncs",
            unit="none",
            is_from_zero=True,
            shows=(
                "Replicas left out of an average, runs rolled back, and boundaries that failed, in each "
                "interval."
            ),
            remedy="Non-finite on many runs at once points to hardware; on one, to its rate or its data.",
            queries=(
                Query(
                    expr=f"sum by (reason) (increase(hdet_replica_quarantines_total{{{NS}}}[{RATE}]))",
                    legend="quarantined: {{reason}}",
                ),
                Query(
                    expr=f"sum(increase(hdet_rollbacks_total{{{NS}}}[{RATE}]))",
                    legend="rolled back",
                ),
                Query(
                    expr=f"sum by (reason) (increase(hdet_sync_failures_total{{{NS}}}[{RATE}]))",
                    legend="sync failed: {{reason}}",
                ),
            ),
        ),
    ),
)

_PACE = Row(
    title="Pace",
    panels=(
        Panel(
            title="Rounds per second",
            unit="cps",
            width=8,
            is_from_zero=True,
            shows="Boundaries that replicas reach per second: over all runs, and each run.",
            remedy=(
                "All fall together: the controller or the network. One stops: HDETSyncStalled tells which."
            ),
            queries=(
                Query(
                    expr=f"sum(rate(hdet_sync_duration_seconds_count{{{NS}}}[{RATE}]))",
                    legend="all",
                    is_thick=True,
                ),
                Query(
                    expr=f"sum by (run) (rate(hdet_sync_duration_seconds_count{{{NS}}}[{RATE}]))",
                    legend="{{run}}",
                ),
            ),
        ),
        Panel(
            title="Samples per second",
            unit="cps",
            width=8,
            is_from_zero=True,
            shows="Training samples per second, over the runs whose loop passes a sampler to `attach`.",
            remedy=(
                "A fall without a loss of replicas: input, thermal throttling, or a neighbour on the machine."
            ),
            queries=(
                Query(expr=f"sum by (run) (rate(hdet_samples_total{{{NS}}}[{RATE}]))", legend="{{run}}"),
            ),
        ),
        Panel(
            title="Time since the last sync",
            unit="s",
            width=8,
            is_from_zero=True,
            shows="Age of the newest boundary of each run that should train.",
            remedy="A saw-tooth is health. A line that climbs is a hang: open the run, see HDETSyncStalled.",
            queries=(
                Query(
                    expr=(
                        f"time() - max by (run) (hdet_last_sync_timestamp_seconds{{{NS}}}) "
                        f'and on (run) max by (run) (hdet_replicas{{state="wanted", {NS}}}) > 0'
                    ),
                    legend="{{run}}",
                ),
            ),
        ),
    ),
)


def _quantiles(metric: str) -> tuple[Query, ...]:
    return tuple(
        Query(
            expr=f"histogram_quantile({q}, sum by (le) (rate({metric}_bucket{{{NS}}}[{RATE}])))", legend=name
        )
        for q, name in ((0.5, "median"), (0.99, "99 %"))
    )


_CONTROLLER = Row(
    title="Controller",
    panels=(
        Panel(
            title="Exchange latency",
            unit="s",
            is_logarithmic=True,
            shows="How long the controller takes to answer a boundary's report: decided, and on disk.",
            remedy=(
                "Above about a second training stops waiting and decides for itself (nothing is lost). Look "
                "at the head's disk first (every answer is an fsync), then at its CPU."
            ),
            queries=_quantiles("hdet_exchange_duration_seconds"),
        ),
        Panel(
            title="HTTP latency",
            unit="s",
            is_logarithmic=True,
            shows="How long HTTP requests take.",
            remedy=(
                "Compare with the exchange latency: both slow is the disk or the CPU; HTTP alone is one "
                "client."
            ),
            queries=_quantiles("hdet_http_request_duration_seconds"),
        ),
        Panel(
            title="HTTP requests by status",
            unit="reqps",
            kind="stack",
            is_from_zero=True,
            shows="Requests per second, by status.",
            remedy=(
                "401 and 403: a token is wrong or lacks a role. 429: a client polls too fast. 5xx: read the "
                "controller's log."
            ),
            queries=(
                Query(
                    expr=f"sum by (status) (rate(hdet_http_requests_total{{{NS}}}[{RATE}]))",
                    legend="{{status}}",
                ),
            ),
        ),
        Panel(
            title="Live streams",
            unit="none",
            is_from_zero=True,
            shows="Clients that listen to event streams (consoles, `hdet watch`, `hdet logs -f`).",
            remedy=(
                "At the limit new ones are refused with 429; raise max_sse_clients or find who holds them."
            ),
            queries=(Query(expr=f"sum(hdet_sse_clients{{{NS}}})", legend="clients"),),
        ),
    ),
)

FLEET = Board(
    uid="hdet-fleet",
    title="HDET / Fleet",
    description=(
        "All jobs of a cluster: where they stand, what fails, how fast they go, how the controller is."
    ),
    rows=(_JOBS, _REPLICAS, _PACE, _CONTROLLER),
    events=(
        Event(
            name="Alerts",
            expr=f'ALERTS{{alertname=~"HDET.*", alertstate="firing", {NS}}}',
            title="{{alertname}} {{run}}",
            color="red",
        ),
    ),
    has_run=False,
    window="now-6h",
)
