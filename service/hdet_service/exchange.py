"""The exchange as pure functions: what is stored of a run and what its rank 0 says, to what must be written.

Nothing here touches the database, so every order in which requests can be lost, doubled or delayed can be
tried on plain values. The decision itself is `hdet_ray.core.decide`, and nothing is added to it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hdet_ray.core.codec import digest, digest_of_json, from_json
from hdet_ray.core.decide import decide_after, judge_report
from hdet_ray.core.health import Verdict
from hdet_ray.core.plan import Plan
from hdet_ray.core.planning import plan_for
from hdet_ray.core.replay import EncodedRound, encode_round
from hdet_ray.core.report import RoundReport
from hdet_ray.core.state import ScheduleState
from hdet_ray.exceptions import LedgerError
from hdet_ray.train.protocol import PROTOCOL, Command, ExchangeRequest, OpenRequest, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a run's schedule stands: everything before ``state.round`` is stored."""

    attempt: int
    state: ScheduleState
    """The state before the running round."""
    before: ScheduleState | None
    """The one before that, where it is known: an answer that got lost is decided anew from it."""
    plan: Plan
    """The running round's."""
    plan_digest: str

    @property
    def round(self) -> int:
        """The round that is running."""
        return self.state.round


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued:
    """An operator's command in its queue."""

    id: int
    command: Command
    folded_round: int | None = None
    """The report of this round carries it; None: it waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A round to be written."""

    attempt: int
    report: RoundReport
    encoded: EncodedRound

    @property
    def round(self) -> int:
        return self.report.round


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Nothing is written."""

    status: Status
    message: str = ""
    from_round: int | None = None
    line: Mapping[str, Any] | None = None
    """Signature of the line before that round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeated:
    """It was stored before: the first answer again."""

    offered: tuple[Command, ...]
    plan_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A report was taken: all of it is written in one transaction."""

    lines: tuple[Line, ...]
    """Its round's, and before it the one that it proves to have been decided otherwise."""
    standing: Standing
    folded: Mapping[int, int]
    """Round by command's id."""
    offered: tuple[Command, ...] = ()
    """Commands that the run is to add to its report's own."""
    returned: int | None = None
    """Commands of this round's former line wait again."""
    finished: Plan | None = None
    """The plan that the reported round followed; None where the round had been confirmed before."""
    verdict: Verdict | None = None
    """What its boundary did with each replica."""
    confirmed: ScheduleState | None = None
    """The state of that plan: it has been in force."""
    confirmed_before: ScheduleState | None = None
    """The state confirmed before it, where that is known."""


Stored = Callable[[int], str | None]
"""The newest chain's line of a round."""


def fence(
    request: OpenRequest | ExchangeRequest, *, attempt: int, submission: int, epoch: int, closed: str = ""
) -> Refused | None:
    """Why a caller is not listened to, whatever it says; None where it is.

    Args:
        request: What it sent.
        attempt: The newest attempt of the run.
        submission: The newest driver of the job.
        epoch: This controller's own.
        closed: Why the job takes no more reports.
    """
    if request.protocol != PROTOCOL:
        return Refused(
            status="protocol",
            message=f"protocol {request.protocol} is not spoken here, {PROTOCOL} is; give the job's "
            "environment the hdet-ray release of the service",
        )
    if request.epoch_seen > epoch:
        return Refused(
            status="fenced",
            message=f"this controller is of epoch {epoch}, the run has heard from epoch {request.epoch_seen}",
        )
    if request.submission < submission:
        return Refused(
            status="fenced",
            message=f"driver {request.submission} of the job was followed by driver {submission}; this one "
            "must stop",
        )
    if request.attempt < attempt:
        return Refused(
            status="fenced",
            message=f"attempt {request.attempt} of the run was followed by attempt {attempt}; this one must "
            "stop (where the run's storage folder was emptied, submit a new job)",
        )
    return Refused(status="fenced", message=closed) if closed else None


def receive(
    standing: Standing | None, request: ExchangeRequest, queue: Sequence[Queued], stored: Stored
) -> Taken | Repeated | Refused:
    """Take a report: decide on it, recognize it, or ask for what is missing.

    Args:
        standing: Where the run stands; None where no worker has opened it.
        request: The report, of a caller that passed `fence`.
        queue: Commands that wait, and those that reports from round ``standing.round - 1`` on carry, in
            order.
        stored: The lines that are stored.

    Raises:
        LedgerError: the report can't be read.
    """
    if standing is None or request.attempt > standing.attempt:
        return Refused(status="resync", message="the run was not opened by this attempt")
    if request.round > standing.round:
        return Refused(status="resync", message=f"round {standing.round} is due here")
    report, text = _read(request)
    if not report.replicas or report.round != request.round:
        raise LedgerError(
            f"round {request.round} reports {len(report.replicas)} replicas of round {report.round}"
        )
    if request.round < standing.round:
        return _known_round(standing, request, report, text, queue, stored)
    standing = _for_replicas(standing, len(report.replicas))
    if report.plan_digest != standing.plan_digest:
        return _after_lost_answer(standing, request, report, text, queue, stored)
    return _decided(standing, request, report, text, _waiting(queue))


def opened(
    state: ScheduleState, num_replicas: int, attempt: int, before: ScheduleState | None = None
) -> Standing:
    """Where a run stands when an attempt begins at ``state``."""
    plan = plan_for(state, num_replicas)
    return Standing(attempt=attempt, state=state, before=before, plan=plan, plan_digest=digest(plan))


def signature(line: str | None) -> dict[str, Any] | None:
    """What tells a stored line from another of the same round."""
    if line is None:
        return None
    item = json.loads(line)
    return {name: item[name] for name in ("attempt", "report_digest")}


def line_leads_to(line: str | None, state: ScheduleState, told: Mapping[str, Any] | None) -> bool:
    """A stored line was decided into this very state, and is the one that the run has told of."""
    if line is None:
        return False
    item = json.loads(line)
    is_same = told is None or all(item.get(name) == value for name, value in told.items())
    return is_same and item.get("state_digest") == digest(state)


def _read(request: ExchangeRequest) -> tuple[RoundReport, str | None]:
    """The report, and its text if that can stand in a line as it is."""
    data, text = request.report, None
    if isinstance(data, str):
        text = data
        try:
            data = json.loads(text, parse_constant=_no_number)
        except ValueError as error:
            raise LedgerError(f"the report of round {request.round} is no JSON: {error}") from error
    report: RoundReport = from_json(RoundReport, data)
    return report, None if text is None or "\n" in text else text


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number in JSON")


def _for_replicas(standing: Standing, num_replicas: int) -> Standing:
    """The running round as so many replicas trained it: one that is delivered late had its own size."""
    if num_replicas == standing.plan.num_replicas:
        return standing
    plan = plan_for(standing.state, num_replicas)
    return replace(standing, plan=plan, plan_digest=digest(plan))


def _decided(
    standing: Standing,
    request: ExchangeRequest,
    report: RoundReport,
    text: str | None,
    queue: Sequence[Queued],
) -> Taken | Refused:
    """The running round's report: decide, with all that waits or as the run already has."""
    offered: tuple[Command, ...] = ()
    if request.decided is None:
        offered = tuple(q.command for q in queue)
        report = replace(report, commands=(*report.commands, *offered))
        folded = {q.id: report.round for q in queue}
    else:
        folded = _carried(report, queue)
    verdict = judge_report(standing.state, standing.plan, report)
    state, plan = decide_after(standing.state, standing.plan, standing.plan_digest, report, verdict)
    line = Line(
        attempt=request.line_attempt or request.attempt,
        report=report,
        encoded=encode_round(
            request.line_attempt or request.attempt,
            report,
            plan,
            state,
            report_text=None if offered else text,
        ),
    )
    if request.decided is not None and request.decided.get("plan_digest") != line.encoded.plan_digest:
        return Refused(
            status="resync", message=f"round {report.round} gives another plan here than in the run"
        )
    following = Standing(
        attempt=request.attempt,
        state=state,
        before=standing.state,
        plan=plan,
        plan_digest=line.encoded.plan_digest,
    )
    return Taken(
        lines=(line,),
        standing=following,
        folded=folded,
        offered=offered,
        finished=standing.plan,
        verdict=verdict,
        confirmed=standing.state,
        confirmed_before=standing.before,
    )


def _known_round(
    standing: Standing,
    request: ExchangeRequest,
    report: RoundReport,
    text: str | None,
    queue: Sequence[Queued],
    stored: Stored,
) -> Taken | Repeated | Refused:
    """A report of a stored round: the same again, or decided without the commands of a lost answer."""
    line = stored(request.round)
    if line is None:
        return Refused(status="resync", message=f"round {request.round} is not kept here any more")
    item = json.loads(line)
    then: RoundReport = from_json(RoundReport, item["report"])
    if digest(replace(report, commands=then.commands)) != item["report_digest"]:
        return Refused(status="resync", message=f"another report of round {request.round} is stored")
    plan_digest = digest_of_json(item["plan"])
    if request.decided is None or (
        report.commands == then.commands and request.decided.get("plan_digest") == plan_digest
    ):
        offered = () if request.decided else then.commands[len(report.commands) :]
        return Repeated(offered=offered, plan_digest=plan_digest)
    if request.round != standing.round - 1 or standing.before is None:
        return Refused(status="resync", message=f"round {request.round} was decided otherwise here")
    # What the former line had folded in waits again, but for what the report itself carries.
    again = _previous(standing, standing.before, len(then.replicas))
    attempt = int(item["attempt"]) if request.line_attempt is None else request.line_attempt
    taken = _decided(
        again, replace(request, line_attempt=attempt), report, text, _waiting(queue, request.round)
    )
    if isinstance(taken, Refused):
        return taken
    return replace(taken, returned=request.round, finished=None, verdict=None, confirmed=None)


def _after_lost_answer(
    standing: Standing,
    request: ExchangeRequest,
    report: RoundReport,
    text: str | None,
    queue: Sequence[Queued],
    stored: Stored,
) -> Taken | Refused:
    """The running round followed another plan than ours: try whether it is the one without commands."""
    otherwise = Refused(
        status="resync", message=f"round {report.round} followed a plan that was not decided here"
    )
    line = stored(standing.round - 1)
    if standing.before is None or line is None:
        return otherwise
    item = json.loads(line)
    then: RoundReport = replace(from_json(RoundReport, item["report"]), commands=())
    before = _previous(standing, standing.before, len(then.replicas))
    earlier = ExchangeRequest(
        job=request.job,
        attempt=request.attempt,
        line_attempt=int(item["attempt"]),
        round=then.round,
        report={},
        decided={"plan_digest": report.plan_digest},
    )
    corrected = _decided(before, earlier, then, None, ())
    if isinstance(corrected, Refused):
        return otherwise
    taken = _decided(corrected.standing, request, report, text, _waiting(queue, then.round))
    if isinstance(taken, Refused):
        return taken
    return replace(
        taken, lines=(*corrected.lines, *taken.lines), returned=then.round, confirmed_before=standing.before
    )


def _previous(standing: Standing, before: ScheduleState, num_replicas: int) -> Standing:
    """Where the run stood one round ago."""
    plan = plan_for(before, num_replicas)
    return Standing(attempt=standing.attempt, state=before, before=None, plan=plan, plan_digest=digest(plan))


def _waiting(queue: Iterable[Queued], returned: int | None = None) -> list[Queued]:
    """What waits, with what a line that is replaced gives back."""
    return [q for q in queue if q.folded_round in (None, returned)]


def _carried(report: RoundReport, queue: Sequence[Queued]) -> dict[int, int]:
    """Waiting commands that a report has brought along."""
    left: list[Command] = list(report.commands)
    folded = {}
    for queued in queue:
        if queued.command in left:
            left.remove(queued.command)
            folded[queued.id] = report.round
    return folded
