"""A run as its ledger tells it: each round with its plan, its report, and what was learned from it.

The live table and the report draw from here, so that both say the same of a round. A ledger holds reports
and the plans that followed; the plan that a round *followed*, the verdict and the state after it come from
deciding anew, which is pure and costs microseconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hdet_ray.core.decide import decide, judge_report
from hdet_ray.core.health import Verdict
from hdet_ray.core.plan import RATE, Plan, value_at
from hdet_ray.core.planning import plan_for
from hdet_ray.core.replay import Ledger, LedgerItem
from hdet_ray.core.report import RoundReport
from hdet_ray.core.state import ScheduleState
from hdet_ray.exceptions import LedgerError


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One round that is over."""

    attempt: int
    """The start of the run that it belongs to."""
    plan: Plan
    """What its replicas did."""
    report: RoundReport
    verdict: Verdict
    after: ScheduleState
    """What was known after it."""
    upcoming: Plan
    """What was planned next."""

    @property
    def end_step(self) -> int:
        """The schedule's step t after the round."""
        return self.plan.step + self.report.steps

    def rate_of(self, replica: int, group: int = 0) -> float:
        """The rate that a replica tried in a search round, else the one it had at the round's last step."""
        plan = self.plan
        if plan.is_search:
            return plan.peak[(RATE, group)] * plan.values[(RATE, group)][replica]
        last = plan.step + max(self.report.steps, 1) - 1
        external = self.report.external_rates.get((RATE, group), math.nan)
        return value_at(plan, RATE, group, replica, last, external=external)

    def is_dead(self, replica: int) -> bool:
        """The replica was left out, or its candidate of a search round died."""
        team = self.plan.teams[replica]
        if self.plan.is_search and team is not None and self.after.search is not None:
            tried = [p for p in self.after.search.points if p.round == self.plan.round]
            return team < len(tried) and tried[team].is_dead
        return replica in self.verdict.unhealthy

    @property
    def live_losses(self) -> list[float]:
        """Mean training losses of the replicas that were not left out and did not die."""
        losses = [r.loss for i, r in enumerate(self.report.replicas) if not self.is_dead(i)]
        return [loss for loss in losses if math.isfinite(loss)]


class History:
    """The rounds of a run, in order, from the initial state on.

    Args:
        state: The ledger's first line.
    """

    def __init__(self, state: ScheduleState) -> None:
        self.initial = state
        self.rounds: list[Round] = []
        self.abandoned: list[LedgerItem | Round] = []
        """Rounds that a newer attempt went back before, as far as they were read."""

    @classmethod
    def of(cls, ledger: Ledger) -> History:
        """The whole history of a ledger that was read."""
        history = cls(ledger.state)
        history.abandoned += ledger.abandoned
        for item in ledger.items:
            history.add(item)
        return history

    @property
    def state(self) -> ScheduleState:
        """What is known now."""
        return self.rounds[-1].after if self.rounds else self.initial

    @property
    def num_replicas(self) -> int | None:
        """Replicas of the newest round; None before the first one."""
        return self.rounds[-1].plan.num_replicas if self.rounds else None

    def add(self, item: LedgerItem) -> Round:
        """Take in the next round; one that was there already belongs to a restart, which goes on from there.

        Raises:
            LedgerError: a round is missing, or the report is not of the plan that is due.
        """
        place = item.round - self.initial.round
        if not 0 <= place <= len(self.rounds):
            due = self.initial.round + len(self.rounds)
            raise LedgerError(f"round {item.round} stands where round {due} is due: a line is missing")
        self.abandoned += self.rounds[place:]
        del self.rounds[place:]
        state, report = self.state, item.report
        plan = plan_for(state, len(report.replicas))
        after, upcoming = decide(state, report)
        verdict = judge_report(state, plan, report)
        self.rounds.append(
            Round(
                attempt=item.attempt,
                plan=plan,
                report=report,
                verdict=verdict,
                after=after,
                upcoming=upcoming,
            )
        )
        return self.rounds[-1]
