"""What a run's rank 0 and its controller say to each other: plain JSON, one version number.

Jobs bring their own `hdet_ray`, so the two sides may be of different releases; what they must agree on
stands here, and a change of meaning raises `PROTOCOL`.

    open      an attempt begins at this state: the first one, or one restored from a checkpoint
    adopt     the same, and the controller takes the state though its own rounds don't lead there
    exchange  a round's report; the answer names the operators' commands to decide with
    note      something happened (a checkpoint was stored, the run has paused): nothing is answered
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from hdet_ray.core.codec import from_json, to_json
from hdet_ray.core.overrides import Freeze, Override, Removal, SetBounds
from hdet_ray.exceptions import HDETError, LedgerError

PROTOCOL = 1

Command = Override | Removal | Freeze | SetBounds
Status = Literal["ok", "fenced", "resync", "unknown_job", "protocol"]
Directive = Literal["pause", "checkpoint"]


class ControlUnavailable(HDETError):  # noqa: N818  # a fact about the controller, that nobody outside sees
    """The controller gave no usable answer; the call may or may not have been carried out."""


class Transport(Protocol):
    """Carries one call to the controller."""

    def call(self, kind: str, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """The answer.

        Raises:
            ControlUnavailable: none came within the transport's own time limit.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRequest:
    """An attempt begins, or goes on after the controller has lost the thread."""

    protocol: int = PROTOCOL
    job: str
    attempt: int
    submission: int = 0
    epoch_seen: int = 0
    """Newest epoch of a controller that this run has heard from; one of an older epoch is not listened to."""
    state: Mapping[str, Any]
    """`state_to_json`."""
    num_replicas: int
    line: Mapping[str, Any] | None = None
    """``{"attempt", "report_digest"}`` of the round before, as the run's own ledger has it: another report
    may have led to the same state. None where it has none."""
    storage_path: str | None = None
    resumed_round: int | None = None
    """Round of the checkpoint that the attempt was restored from."""
    host: str = ""
    pid: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeRequest:
    """The report of one round."""

    protocol: int = PROTOCOL
    job: str
    attempt: int
    submission: int = 0
    line_attempt: int | None = None
    """The attempt that trained the round, where an earlier one did; None: ``attempt``."""
    round: int
    epoch_seen: int = 0
    report: Any
    """Its `canonical_text`, which the controller's line takes over as it is; its JSON will do too."""
    decided: Mapping[str, str] | None = None
    """``{"plan_digest": …}``: the run has already gone on with this plan, decided with the report's own
    commands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteRequest:
    """Something happened."""

    protocol: int = PROTOCOL
    job: str
    attempt: int | None = None
    submission: int = 0
    kind: str
    """``imported``, ``started``, ``checkpoint``, ``paused``, ``finished``, …"""
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the controller says to any of them."""

    status: Status
    epoch: int
    commands: tuple[Command, ...] = ()
    """Operators' commands to decide this round with, in order."""
    plan_digest: str | None = None
    """Digest of the plan that the controller decided."""
    directive: Directive | None = None
    from_round: int | None = None
    """``resync``: the first round whose line the controller needs again."""
    line: Mapping[str, Any] | None = None
    """The line before that one, as the controller has it: of another attempt than the run's own, and more is
    needed again. Written as in `OpenRequest`."""
    message: str = ""


def answer_from_json(data: Mapping[str, Any]) -> Answer:
    """An answer as it came; fields that a newer controller adds are passed over.

    Raises:
        ControlUnavailable: it can't be read.
    """
    known = {name: value for name, value in data.items() if name in Answer.__dataclass_fields__}
    try:
        answer: Answer = from_json(Answer, known)
    except LedgerError as error:
        raise ControlUnavailable(f"the controller's answer can't be read: {error}") from error
    return answer


def request_to_json(request: OpenRequest | ExchangeRequest | NoteRequest) -> dict[str, Any]:
    """What travels; the parts that are JSON already stay as they are."""
    return {name: getattr(request, name) for name in request.__dataclass_fields__}


def answer_to_json(answer: Answer) -> dict[str, Any]:
    """What travels back."""
    out: dict[str, Any] = to_json(answer)
    return out
