"""Rounds: what happens at a boundary, in its order, on every rank.

1. all-gather of losses and health, judged by a pure function: the same verdict everywhere
2. probes, where the plan asks for them (before the mean: they compare what replicas have become)
3. average, put-back, or rollback, as plan and verdict say
4. rank 0 exchanges the report for a plan and broadcasts it; every rank applies it
5. callbacks (checkpoints, metrics): tensors as after 3, state and plan as after 4

Between boundaries nothing here runs but one hook before the first update of an attempt.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch.optim import Optimizer

from hdet_ray.core.codec import HParamKey, digest
from hdet_ray.core.decide import start
from hdet_ray.core.health import Verdict, judge
from hdet_ray.core.plan import Plan, ProbeSpan, value_at
from hdet_ray.core.planning import plan_for
from hdet_ray.core.report import ReplicaReport, RoundReport
from hdet_ray.core.search import scout_teams
from hdet_ray.core.state import ScheduleConfig, ScheduleState
from hdet_ray.exceptions import CollectiveError, HDETError, ProbeError, RollbackLimitError, SearchError
from hdet_ray.optim.collective import Collective
from hdet_ray.optim.control import Control
from hdet_ray.optim.divergence import largest
from hdet_ray.optim.gradient_sync import TeamSync
from hdet_ray.optim.hyperparameters import BoundHyperparameter
from hdet_ray.optim.probes import Probe
from hdet_ray.optim.rows import HealthRow, ProbeRow, replica_means, replica_reports, sample_facts
from hdet_ray.optim.samples import SampleCount
from hdet_ray.optim.weights import Weights
from hdet_ray.optim.window import summarize

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundaryEvent:
    """What callbacks are told: the round that ended, and what comes next."""

    finished: Plan
    report: RoundReport
    verdict: Verdict
    state: ScheduleState
    plan: Plan
    """The next round's; of 0 steps where the schedule has ended."""
    is_last: bool
    directive: str | None = None
    """What a remote control asks for beside the plan (``pause``); the same on every rank."""


@dataclass(slots=True, kw_only=True)
class _Measured:
    """A probe loss, or the error that came instead."""

    loss: float = math.nan
    error: ProbeError | None = None


class Rounds:
    """Carries one scheduler's reports out and its plans in."""

    def __init__(
        self,
        config: ScheduleConfig,
        collective: Collective,
        control: Control,
        *,
        weights: Weights,
        sync: TeamSync | None,
        probe: Probe | None,
        hyperparameters: Sequence[BoundHyperparameter],
        first_step: int = 0,
        clock: Clock = time.monotonic,
    ) -> None:
        self.collective = collective
        self.control = control
        self.weights = weights
        self.callbacks: list[Callable[[BoundaryEvent], None]] = []
        self.fact_sources: list[Callable[[], Mapping[str, float]]] = []
        """Asked on every rank at each boundary; what rank 0's tell stands among the report's facts."""
        self.directive_sources: list[Callable[[], str | None]] = []
        """Asked on rank 0 at each boundary, where the control asks for nothing; the first answer counts."""
        self.samples = SampleCount()
        """What the ranks have trained on."""
        self._sync = sync
        self._probe = probe
        self._hyperparameters = hyperparameters
        self._clock = clock
        self._is_open = False
        self._is_early_snapshot = False
        self._untrained: _Measured | None = None
        self._round_began_s = clock()
        self.state, self.plan = start(config, collective.num_replicas, first_step=first_step)
        self._prepare_teams()
        self._enter_plan()

    @property
    def hyperparameters(self) -> Sequence[BoundHyperparameter]:
        """What replicas vary beside the rate."""
        return self._hyperparameters

    @property
    def syncs_by_teams(self) -> bool:
        """Gradients can be shared in teams."""
        return self._sync is not None

    def begin_anew(self, config: ScheduleConfig) -> None:
        """Plan the run by another config; before its first step, on every rank."""
        self.state, self.plan = start(config, self.collective.num_replicas, first_step=self.state.step)
        self._prepare_teams()
        self._enter_plan()

    def restore(self, state: ScheduleState) -> None:
        """Go on from a state, at whatever number of replicas there is now; an attempt begins."""
        self.state = state
        self.plan = plan_for(state, self.collective.num_replicas)
        self._is_open = False
        self._prepare_teams()
        self.weights.forget_snapshot()
        self._enter_plan()

    def before_forward(self) -> None:
        """Remember the weights before the first training forward pass: it moves BatchNorm's buffers, on each
        rank its own way, and a put-back must give all ranks the same."""
        if not self.weights.has_snapshot:
            self.weights.take_snapshot()
            self._is_early_snapshot = True

    def before_update(self, _optimizer: Optimizer | None = None, *_args: object) -> None:
        """Open an attempt before its first update: remember the weights, measure them untrained.

        Collective once an attempt: a probe that can't work stops every rank before anything is trained.
        """
        if self._is_open:
            return
        self._is_open = True
        self._round_began_s = self._clock()
        if self._is_early_snapshot and not self.weights.equal_snapshot():
            self.weights.forget_snapshot()  # weights were loaded after the first forward pass
        self._is_early_snapshot = False
        if self.weights.has_snapshot:
            # Restored in the middle of a search round: what it began with is in the snapshot.
            with self.weights.lent():
                self.weights.show_snapshot()
                self._measure_untrained()
        else:
            self.weights.take_snapshot()
            self._measure_untrained()
        self._resume_control()

    def _resume_control(self) -> None:
        """Tell the control that an attempt begins; what goes wrong at its opening stops every rank."""
        error: HDETError | None = self._untrained.error if self._untrained else None
        if self.collective.rank == 0 and error is None:
            try:
                self.control.resume(self.state)
            except HDETError as raised:
                error = raised
            except Exception as raised:  # a control may be anyone's: the others must not wait for rank 0
                error = CollectiveError(f"rank 0 could not open the run: {type(raised).__name__}: {raised}")
                error.__cause__ = raised
        self.collective.agree(error)

    def end_round(
        self,
        losses: Sequence[float] | None,
        *,
        calls: int,
        skipped: Sequence[int],
        external_rates: Mapping[HParamKey, float],
    ) -> BoundaryEvent:
        """Meet the other ranks and enter the next round; collective.

        Args:
            losses: This rank's training losses, one per call; ``None`` where the loop passes none.
            calls: Calls of ``step`` in this round.
            skipped: Those of them (from 0) whose update the optimizer skipped.
            external_rates: The base scheduler's rates now, where the base is the user's own.

        Raises:
            ProbeError: the probe broke its contract on any rank.
            CollectiveError: ranks have different optimizer states.
            SearchError: no candidate lived.
            RollbackLimitError: too many rollbacks in a row.
        """
        self.before_update()
        finished, began_s = self.plan, self._round_began_s
        rows = self._gather_health(losses, len(skipped))
        replicas = replica_reports(rows, self.collective.ranks_per_replica)
        verdict = judge(finished, replicas, self.state.config.thresholds)
        replicas, untrained = self._gather_probes(replicas, rows)
        ended_s = self._clock()
        sync_bytes, divergence = self._settle_weights(finished, verdict, self._shares_moments(rows))
        report = RoundReport(
            round=finished.round,
            calls=calls,
            steps=calls - self._skipped_by_all(rows, skipped),
            plan_digest=digest(finished),
            replicas=tuple(replicas),
            untrained_loss=untrained,
            external_rates=external_rates,
            facts={
                "wall_s": ended_s - began_s,
                "sync_s": self._clock() - ended_s,
                "sync_bytes": float(sync_bytes),
                **({} if divergence is None else {"param_divergence_ratio": divergence}),
                **self.samples.told(sample_facts(rows, self.collective.ranks_per_replica)),
                **self._facts_of_others(),
            },
        )
        directive = self._exchange(report)
        self._enter_plan()
        if self.plan.num_steps:
            self.weights.take_snapshot()
            self._measure_untrained()
        else:
            self.weights.release_snapshot()
        self._round_began_s = self._clock()
        return BoundaryEvent(
            finished=finished,
            report=report,
            verdict=verdict,
            state=self.state,
            plan=self.plan,
            is_last=self.plan.num_steps == 0,
            directive=directive,
        )

    def tell(self, event: BoundaryEvent) -> None:
        """Call the callbacks; when the scheduler has entered the next round, so that they can save it."""
        for callback in self.callbacks:
            callback(event)

    def _prepare_teams(self) -> None:
        """Make the groups of every partition that a search may use: once, by all ranks."""
        n = self.collective.num_replicas
        if self.state.search is None or n < 2:
            return
        scouts = scout_teams(n)
        half = n // 2
        teams = [[r for r, team in enumerate(scouts) if team == t] for t in range(max(scouts) + 1)]
        self.collective.prepare([*teams, range(half), range(half, 2 * half)])

    def _enter_plan(self) -> None:
        plan = self.plan
        for note in plan.notes if self.collective.rank == 0 else ():
            warnings.warn(note, UserWarning, stacklevel=4)
        if plan.failure is not None:
            kind = SearchError if plan.failure.reason == "search" else RollbackLimitError
            raise kind(plan.failure.message)
        for hp in self._hyperparameters:
            hp.set(value_at(plan, hp.name, hp.group, self.collective.replica, plan.step))
        if self._sync is not None:
            team = self.collective.team(plan.teams)
            self._sync.use(team.group, team.size, is_whole_world=team.is_whole_world)

    def _gather_health(self, losses: Sequence[float] | None, num_skipped: int) -> list[HealthRow]:
        summary = None if losses is None else summarize(losses)
        first_nonfinite = None if self._sync is None else self._sync.first_nonfinite()
        nan = math.nan
        row = HealthRow(
            has_loss=float(summary is not None),
            mean=summary.mean if summary else nan,
            tail=summary.tail if summary else nan,
            start=summary.start if summary else nan,
            last=summary.last if summary else nan,
            noise=summary.noise if summary else nan,
            first=summary.first if summary else nan,
            is_finite=float(self.weights.is_finite()),
            first_nonfinite=math.inf if first_nonfinite is None else float(first_nonfinite),
            skips=float(num_skipped),
            averaged_tensors=float(self.weights.num_averaged()),
            moments=self.weights.moments_digest() if self._may_share_moments else nan,
            samples=self.samples.take_new(),
        )
        rows = [HealthRow.from_list(r) for r in self.collective.gather_row(row.as_list())]
        if self.plan.end == "average" and len({r.averaged_tensors for r in rows}) > 1:
            counts = ", ".join(f"rank {i}: {int(r.averaged_tensors)}" for i, r in enumerate(rows))
            raise CollectiveError(
                f"ranks hold different numbers of parameters, buffers and optimizer tensors ({counts}), so "
                "they can't be averaged; give every rank the same model, and let every parameter get a "
                "gradient on every rank"
            )
        return rows

    def _gather_probes(
        self, replicas: list[ReplicaReport], rows: Sequence[HealthRow]
    ) -> tuple[list[ReplicaReport], float | None]:
        """Probe losses into the reports, and the untrained loss, where the plan asks for them."""
        plan = self.plan
        if plan.probe is None:
            search = self.state.search
            wants_untrained = plan.is_search and search is not None and search.untrained is None
            # Without a probe the round's first batch tells what the untrained weights' loss was.
            return replicas, sum(r.first for r in rows) / len(rows) if wants_untrained else None
        measured = self._measure(plan.probe)
        untrained = self._untrained or _Measured()
        error = measured.error or untrained.error
        row = ProbeRow(loss=measured.loss, untrained=untrained.loss, has_failed=float(error is not None))
        gathered = [ProbeRow.from_list(r) for r in self.collective.gather_row(row.as_list())]
        if any(r.has_failed for r in gathered):
            self.collective.agree(error)
        losses = replica_means([r.loss for r in gathered], self.collective.ranks_per_replica)
        replicas = [replace(r, probe_loss=loss) for r, loss in zip(replicas, losses, strict=True)]
        self._untrained = None
        if plan.untrained_probe is None:
            return replicas, None
        return replicas, sum(r.untrained for r in gathered) / len(gathered)

    def _measure_untrained(self) -> None:
        """Measure the weights that a stage of the search begins with, where the plan asks for it."""
        if self.plan.untrained_probe is not None and self._untrained is None:
            self._untrained = self._measure(self.plan.untrained_probe)

    def _measure(self, span: ProbeSpan) -> _Measured:
        """The probe's mean loss here; an error waits until all ranks can hear of it."""
        if self._probe is None:
            return _Measured()
        try:
            return _Measured(loss=self._probe.measure(span.first, span.count))
        except ProbeError as error:
            return _Measured(error=error)
        except (
            Exception
        ) as error:  # the user's function: whatever it raises must not leave the others waiting
            failure = ProbeError(f"the probe raised {type(error).__name__}: {error}")
            failure.__cause__ = error
            return _Measured(error=failure)

    @property
    def _may_share_moments(self) -> bool:
        """The optimizer's moments follow from gradients that all ranks share."""
        return self.plan.end == "average" and self.plan.is_one_team

    def _shares_moments(self, rows: Sequence[HealthRow]) -> bool:
        """Every replica holds the same optimizer state, bit for bit: there is nothing to average."""
        g = self.collective.ranks_per_replica
        return self._may_share_moments and all(len({r.moments for r in rows[i::g]}) == 1 for i in range(g))

    def _settle_weights(self, plan: Plan, verdict: Verdict, shares_moments: bool) -> tuple[int, float | None]:
        """Bytes of an average, and how far the replica that went furthest was from it."""
        if plan.end == "put_back" or verdict.rolls_back:
            self.weights.restore_snapshot()
            return 0, None
        if plan.end != "average":
            return 0, None
        num_bytes, distance = self.weights.average_measured(verdict.weights, shares_moments=shares_moments)
        distances = [row[0] for row in self.collective.gather_row([distance])]
        return num_bytes, largest(distances[:: self.collective.ranks_per_replica], verdict.weights)

    def _own_directive(self) -> str | None:
        asked: str | None = getattr(self.control, "directive", None)
        return asked or next(filter(None, (source() for source in self.directive_sources)), None)

    def _facts_of_others(self) -> dict[str, float]:
        return {name: float(value) for source in self.fact_sources for name, value in source().items()}

    def _skipped_by_all(self, rows: Sequence[HealthRow], skipped: Sequence[int]) -> int:
        """Steps at which the schedule stood still: every replica skipped. In search rounds a skip counts."""
        if self.plan.is_search or min(r.skips for r in rows) == 0:
            return 0
        return len(set.intersection(*(set(s) for s in self.collective.gather_objects(list(skipped)))))

    def _exchange(self, report: RoundReport) -> str | None:
        """Rank 0 decides, or has it decided; what it broadcasts counts. Returns the control's directive."""
        answer: tuple[ScheduleState, Plan] | None = None
        error: HDETError | None = None
        if self.collective.rank == 0:
            try:
                answer = self.control.exchange(self.state, report)
            except HDETError as raised:
                error = raised
            except Exception as raised:  # a control may be anyone's: the others must not wait for rank 0
                error = CollectiveError(
                    f"rank 0 could not exchange the report of round {report.round}: {raised}"
                )
                error.__cause__ = raised
        directive = self._own_directive() if self.collective.rank == 0 else None
        answer, failed, directive = self.collective.broadcast_object((answer, error is not None, directive))
        if failed:
            self.collective.agree(error)
        if answer is None:
            raise CollectiveError(f"rank 0 had no plan after round {report.round}")
        self.state, self.plan = answer
        return directive
