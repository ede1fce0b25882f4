"""Rows of the dashboard *Run* about learning: rates and losses, and the search for the rate."""

from __future__ import annotations

from deploy.grafana.panels import Panel, Query, Row
from deploy.grafana.selectors import SELF, newest

RATES = Row(
    title="Rates and losses",
    panels=(
        Panel(
            title="Learning rate: base and every replica",
            unit="sci",
            height=10,
            is_logarithmic=True,
            shows="Each replica's rate (thin) around the base rate (thick), by parameter group.",
            remedy=(
                "Falls without end: under `paper` that is its decay; an override can pin the value. Jumps: "
                "an override, a rollback or a new round of the search; the marks say which. All lines on "
                "one: nothing is spread, which is right in plain training."
            ),
            queries=(
                Query(
                    expr=f'max by (run, group) (hdet_base_hparam{{hparam="lr", {SELF}}})',
                    legend="base, group {{group}}",
                    is_thick=True,
                ),
                Query(
                    expr=f'max by (run, group, replica) (hdet_replica_hparam{{hparam="lr", {SELF}}})',
                    legend="replica {{replica}}, group {{group}}",
                ),
            ),
        ),
        Panel(
            title="Losses of the replicas",
            unit="none",
            height=10,
            shows="Mean training loss of each replica over its newest round.",
            remedy=(
                "One leaves the others: its value is too high, or its data is odd. All rise together: lower "
                "the rate (`hdet schedule override`) or roll back. The order of the lines is noise, not "
                "advice."
            ),
            queries=(Query(expr=newest("hdet_replica_loss", "replica"), legend="replica {{replica}}"),),
        ),
        Panel(
            title="Spread of every hyperparameter",
            unit="none",
            shows="Each replica's value relative to the base: 1 is the base itself.",
            remedy="Outside 1 ± alpha in training: tell us, that is a bug. In the search it spans decades.",
            is_logarithmic=True,
            queries=(
                Query(
                    expr=(
                        f"max by (run, hparam, group, replica) (hdet_replica_hparam{{{SELF}}}) "
                        f"/ on (run, hparam, group) group_left () "
                        f"max by (run, hparam, group) (hdet_base_hparam{{{SELF}}})"
                    ),
                    legend="{{hparam}} {{group}}, replica {{replica}}",
                ),
            ),
        ),
        Panel(
            title="Spread of the losses",
            unit="none",
            is_from_zero=True,
            shows="Difference of the highest and the lowest replica's loss.",
            remedy=(
                "Grows: one replica diverges; see its loss, weight and value. Falls to 0: replicas are equal."
            ),
            queries=(Query(expr=newest("hdet_loss_spread"), legend="spread"),),
        ),
        Panel(
            title="Divergence of the parameters",
            unit="percentunit",
            is_from_zero=True,
            shows=(
                "How far replicas were from their mean just before the newest average: ‖θ_r − θ̄‖/‖θ̄‖, the "
                "largest. Empty in plain training, which averages nothing."
            ),
            remedy=(
                "Steadily growing from round to round: averages lose more than they gain; sync more often."
            ),
            queries=(Query(expr=newest("hdet_param_divergence_ratio"), legend="largest"),),
        ),
        Panel(
            title="Weights in the average",
            unit="none",
            is_from_zero=True,
            shows="1 for a replica that counted in the newest round, 0 for one that was left out.",
            remedy=(
                "0: its loss or parameters were not finite, or its loss ran away. It takes the others' mean "
                "and goes on; HDETReplicaUnhealthy says so."
            ),
            queries=(
                Query(expr=newest("hdet_replica_weight_ratio", "replica"), legend="replica {{replica}}"),
            ),
        ),
        Panel(
            title="Values at their bound",
            unit="bool",
            is_from_zero=True,
            shows="1 where a value sits at one of its bounds; for a rate that means its peak.",
            remedy=(
                "Ten minutes of it fire HDETBaseAtBound: widen the bounds, or ask why it wants to go there."
            ),
            queries=(
                Query(
                    expr=newest("hdet_hparam_at_bound", "hparam", "group"),
                    legend="{{hparam}} {{group}}",
                ),
            ),
        ),
        Panel(
            title="Auto-LR: Δ and velocity",
            unit="sci",
            seen="paper",
            shows=(
                "Where the replicas' losses pulled the base at the newest boundary (eq. 6), and its running "
                "mean (eq. 7)."
            ),
            remedy=(
                "Noise around 0 is usual. Never read it as advice: late in a run it says lower for every "
                "rate."
            ),
            queries=(
                Query(expr=newest("hdet_autolr_delta", "hparam", "group"), legend="Δ {{hparam}} {{group}}"),
                Query(
                    expr=newest("hdet_autolr_velocity", "hparam", "group"),
                    legend="velocity {{hparam}} {{group}}",
                    is_thick=True,
                ),
            ),
        ),
    ),
)

SEARCH = Row(
    title="Search",
    panels=(
        Panel(
            title="Best so far",
            unit="sci",
            width=8,
            is_logarithmic=True,
            seen="auto",
            shows="The best value that the search has found yet, by parameter group.",
            remedy=(
                "Still moving by decades in the last rounds: not confirmed; a warning says so. Set max_lr "
                "nearer."
            ),
            queries=(
                Query(
                    expr=newest("hdet_search_best_hparam", "hparam", "group"),
                    legend="{{hparam}} {{group}}",
                ),
            ),
        ),
        Panel(
            title="Dead candidates",
            unit="none",
            width=8,
            is_from_zero=True,
            seen="auto",
            shows="Candidates that diverged or ended worse than untrained weights. They cost nothing.",
            remedy=(
                "A few are how the search finds the edge. Nearly all: max_lr is far too high, or the loss is "
                "odd."
            ),
            queries=(Query(expr=newest("hdet_search_dead_total"), legend="dead"),),
        ),
        Panel(
            title="Steps of the search",
            unit="none",
            width=8,
            is_from_zero=True,
            seen="auto",
            shows="Steps that the search has used: 120 to 160 usually, 220 at most.",
            remedy="At its most every time: start from a max_lr nearer to what it finds.",
            queries=(Query(expr=newest("hdet_search_steps_total"), legend="steps"),),
        ),
    ),
)
