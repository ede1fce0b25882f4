"""The service's answers, typed. They are the JSON as it came: a newer service may add fields."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

Role = Literal["metrics", "viewer", "submitter", "operator"]

ByHParam = dict[str, dict[str, float]]
"""``{"lr": {"0": 3e-4}}``: hyperparameter, then optimizer parameter group."""


class Progress(TypedDict):
    """How far a job is; None where not known yet."""

    step: int
    total_steps: int | None
    steps_per_s: float | None
    eta_s: float | None


class ReplicaCount(TypedDict):
    """Replicas asked for, and replicas in the newest report."""

    wanted: int
    present: int


class Job(TypedDict):
    """A job. Times are RFC 3339, UTC."""

    id: str
    name: str
    state: str
    reason: str
    message: str
    attempt: int
    progress: Progress
    replicas: ReplicaCount
    links: dict[str, Any]
    owner: NotRequired[str]
    priority: NotRequired[int]
    labels: NotRequired[dict[str, str]]
    submission: NotRequired[int]
    failures: NotRequired[int]
    created_at: NotRequired[str]
    updated_at: NotRequired[str]
    started_at: NotRequired[str | None]
    finished_at: NotRequired[str | None]
    transitions: NotRequired[list[dict[str, Any]]]
    spec: NotRequired[dict[str, Any]]


class Checkpoint(TypedDict):
    """A complete checkpoint."""

    round: int
    step: int
    attempt: int
    path: str
    at_s: float | None
    size_bytes: int | None


class Event(TypedDict):
    """Something that happened to a job; ids only grow."""

    id: int
    job_id: str
    type: str
    data: dict[str, Any]
    at_s: float
    """Seconds since the epoch, UTC."""


class Override(TypedDict):
    """An override and what became of it."""

    id: str
    state: Literal["pending", "applied", "expired", "removed", "refused"]
    applied_round: int | None
    reason: str
    """Why it was asked for."""
    refusal: str
    """Why it could not apply."""
    hparam: NotRequired[str]
    op: NotRequired[Literal["set", "scale"]]
    value: NotRequired[float]
    group: NotRequired[int | None]
    apply_at_round: NotRequired[int | None]
    expires_after_rounds: NotRequired[int | None]
    applies_at_round: NotRequired[int | None]
    """When it was made: the round that is next for it; None where it waits for the end of the search."""


class SchedulePoint(TypedDict):
    """One candidate of the search; the loss is None where it was not finite."""

    round: int
    phase: str
    value: float
    loss: float | None
    dead: bool


class Schedule(TypedDict):
    """A schedule as it stands; ``revision`` is what a change must name."""

    phase: str
    round: int
    step: int
    peak: ByHParam
    base: ByHParam
    replicas: list[dict[str, Any]]
    points: list[SchedulePoint]
    velocity: Any
    bounds: dict[str, list[float]]
    one_cycle: ByHParam
    overrides: list[Override]
    revision: int


class TokenInfo(TypedDict):
    """A token without its secret; ``token`` is there once, when it is made."""

    name: str
    role: Role
    token: NotRequired[str]
    created_at: NotRequired[str]
    revoked_at: NotRequired[str | None]
