"""What Ray's controller tells of a job's group of workers: when, how often, and with which numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

pytest.importorskip("ray")

from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2._internal.execution.controller.state import (
    InitializingState,
    PreemptingState,
    ReschedulingState,
    ResizingState,
    RestartingState,
    RunningState,
)
from ray.train.v2._internal.execution.scaling_policy import ResizeDecision
from ray.train.v2.api.exceptions import WorkerGroupError
from ray.train.v2.api.preemption import PreemptionInfo

from hdet_ray.exceptions import CollectiveError, FencedError
from hdet_ray.train.group_notes import LONG_S, PATIENCE_S, LossNotes, StandingNotes

LOST = WorkerGroupError("lost", {0: RuntimeError("gone")})


class Heard:
    """A cluster and a controller that listens."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.free: dict[str, float] = {"CPU": 1.0}
        self.notes: list[tuple[str, dict[str, Any]]] = []
        self.losses = LossNotes(self, post=_at_once)  # type: ignore[arg-type]
        self.standing = StandingNotes(
            self,  # type: ignore[arg-type]
            self.losses,
            min_workers=2,
            per_worker={"CPU": 1.0},
            look=lambda: (self.free, {"CPU": 2.0}),
            clock=lambda: self.now_s,
            post=_at_once,
        )
        self._state: Any = InitializingState()

    def tell(self, kind: str, data: Mapping[str, Any], *, patience_s: float) -> bool:
        self.notes.append((kind, dict(data)))
        return True

    def enter(self, state: Any, seconds: float = 0.0) -> None:
        """Ray's loop turns once, in this state."""
        self.now_s += seconds
        before, self._state = self._state, state
        self.standing.after_controller_state_update(before, state)

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.notes]


def _at_once(act: Callable[[], object]) -> None:
    act()


@pytest.mark.parametrize("waiting", [InitializingState(), RestartingState(LOST)])
def test_a_group_that_finds_no_room_says_so_with_numbers_and_once(waiting: Any) -> None:
    heard = Heard()
    heard.enter(waiting)
    assert heard.notes == [], "the first moments are Ray's own"
    for _ in range(10):
        heard.enter(waiting, PATIENCE_S)
    ((kind, data),) = heard.notes
    assert kind == "waiting"
    assert (data["min_workers"], data["per_worker"]) == (2, {"CPU": 1.0})
    assert (data["free"], data["total"]) == ({"CPU": 1.0}, {"CPU": 2.0})


def test_numbers_that_change_are_said_again() -> None:
    heard = Heard()
    heard.enter(InitializingState())
    heard.enter(InitializingState(), PATIENCE_S)
    heard.free = {"CPU": 0.0}
    heard.enter(InitializingState(), PATIENCE_S)
    assert [data["free"]["CPU"] for _, data in heard.notes] == [1.0, 0.0]


def test_where_there_is_room_nothing_is_said_until_that_takes_long() -> None:
    heard = Heard()
    heard.free = {"CPU": 2.0}
    heard.enter(InitializingState())
    heard.enter(InitializingState(), PATIENCE_S)
    assert heard.notes == []
    heard.enter(InitializingState(), LONG_S)
    assert heard.kinds == ["waiting"]


def test_a_group_whose_workers_did_not_come_in_time_says_so_at_once() -> None:
    heard = Heard()
    heard.enter(ReschedulingState(LOST))
    assert heard.kinds == ["waiting"]


def test_a_group_that_was_begun_starts_the_count_anew() -> None:
    heard = Heard()
    heard.enter(InitializingState())
    heard.enter(InitializingState(), PATIENCE_S)
    heard.enter(RunningState())
    heard.enter(RestartingState(LOST), 100.0)
    assert len(heard.notes) == 1
    heard.enter(RestartingState(LOST), PATIENCE_S)
    assert heard.kinds == ["waiting", "waiting"], "the same numbers, of another wait"


def test_a_notice_and_a_change_of_size_are_told_once() -> None:
    heard = Heard()
    notice = PreemptingState(PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={"a": [1]}), 0.0)
    heard.enter(notice)
    heard.enter(notice, 1.0)
    heard.enter(ResizingState(ResizeDecision(num_workers=3, resources_per_worker={"CPU": 1})))
    assert [(kind, data.get("ranks"), data.get("workers")) for kind, data in heard.notes] == [
        ("preempted", [1], None),
        ("resizing", None, 3),
    ]


def test_a_loss_is_told_unless_the_run_ends_with_it() -> None:
    heard = Heard()
    for error in (FencedError("over"), CollectiveError("rank 1 is silent")):
        heard.losses.after_exception(None, {1: UserExceptionWithTraceback(error, "a traceback")})
    ((kind, data),) = heard.notes
    assert kind == "lost"
    assert "rank 1 is silent" in data["message"]


def test_a_group_is_lost_once_however_often_ray_looks_at_it() -> None:
    heard = Heard()
    for group in range(2):
        heard.enter(RunningState())
        for _ in range(3):
            heard.losses.after_exception(None, {1: RuntimeError("gone")})
            heard.enter(RestartingState(LOST))
        assert heard.kinds == ["lost"] * (group + 1)


def test_the_loss_of_a_node_that_was_announced_is_told_as_one() -> None:
    heard = Heard()
    heard.enter(RunningState())
    heard.enter(PreemptingState(PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={"a": [1]}), 0.0))
    heard.losses.after_exception(None, {1: RuntimeError("gone")})
    heard.enter(RunningState())
    heard.losses.after_exception(None, {1: RuntimeError("gone")})
    told = [data["is_preemption"] for kind, data in heard.notes if kind == "lost"]
    assert told == [True, False]
