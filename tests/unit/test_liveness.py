"""Liveness: who is named, told by a store in memory and a clock that the test moves."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")

from hdet_ray.exceptions import CollectiveError
from hdet_ray.train.liveness import Liveness, is_collective_failure


class Memory:
    """A store that all ranks of a test share."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.is_stopped = False

    def set(self, key: str, value: str) -> None:
        self.values[key] = value

    def check(self, keys: list[str]) -> bool:
        if self.is_stopped:
            raise RuntimeError("no answer")
        return all(key in self.values for key in keys)

    def multi_get(self, keys: list[str]) -> list[bytes]:
        if self.is_stopped:
            raise RuntimeError("no answer")
        return [self.values[key].encode() for key in keys]


class Group:
    """Ranks that beat when the test says so."""

    def __init__(self, num_ranks: int) -> None:
        self.now_s = 0.0
        self.store = Memory()
        self.errors: list[CollectiveError] = []
        self.ranks: list[Any] = [
            Liveness(
                self.store,
                rank=rank,
                num_ranks=num_ranks,
                node=f"node-{rank}",
                hang_s=10,
                on_hang=self.errors.append,
                clock=lambda: self.now_s,
            )
            for rank in range(num_ranks)
        ]
        for rank, one in enumerate(self.ranks):
            one.progress = lambda rank=rank: (3, 40 + rank)

    def pass_time(self, seconds: int, *, without: int | None = None) -> None:
        for _ in range(seconds):
            self.now_s += 1
            for rank, one in enumerate(self.ranks):
                if rank != without:
                    try:
                        one.beat()
                    except RuntimeError:
                        assert self.store.is_stopped


@pytest.mark.parametrize(("stopped", "listening"), [(0, 1), (2, 0)])
def test_a_rank_that_stops_before_its_first_beat_is_named_with_its_place(
    stopped: int, listening: int
) -> None:
    group = Group(3)
    for one in group.ranks:
        one.meet()
    if stopped == 0:
        group.store.is_stopped = True  # it lives in rank 0's process
    group.pass_time(13, without=stopped)
    (suspect,) = group.ranks[listening].suspects(10)
    assert str(suspect).startswith(f"rank {stopped} (node node-{stopped}, pid ")
    assert "has been silent for" in str(suspect)
    assert str(suspect).endswith("before its first round")


def test_nobody_is_suspected_while_all_beat() -> None:
    group = Group(3)
    group.pass_time(30)
    assert [one.suspects(3) for one in group.ranks] == [[], [], []]


@pytest.mark.parametrize("asked", [0, 1])
def test_a_silent_rank_is_named_with_node_pid_round_and_step(asked: int) -> None:
    group = Group(4)
    group.pass_time(5)
    group.pass_time(12, without=2)
    (suspect,) = group.ranks[asked].suspects(8)
    assert suspect.rank == 2
    text = str(suspect)
    assert "rank 2" in text
    if asked == 0:  # the others have it from rank 0, who alone listens to everyone
        assert "node node-2" in text
        assert "in round 3 at step 42" in text


def test_a_store_that_does_not_answer_is_rank_0_s() -> None:
    group = Group(3)
    group.pass_time(5)
    group.store.is_stopped = True
    group.pass_time(12, without=0)
    (suspect,) = group.ranks[1].suspects(8)
    assert suspect.rank == 0
    assert "node node-0" in str(suspect)


def test_rank_0_falling_silent_is_noticed_by_the_others() -> None:
    group = Group(3)
    group.pass_time(5)
    group.pass_time(12, without=0)
    assert [s.rank for s in group.ranks[2].suspects(8)] == [0]


def test_a_rank_whose_loop_has_ended_is_no_suspect_however_long_others_go_on() -> None:
    group = Group(3)
    group.pass_time(5)
    group.ranks[0].stop()
    group.ranks[1].stop()
    group.pass_time(1)
    group.ranks[2].beat()
    group.now_s += 60
    group.ranks[2].beat()
    assert group.ranks[2].suspects(8) == []


def test_a_rank_that_never_began_is_no_suspect() -> None:
    group = Group(2)
    group.pass_time(30, without=1)
    assert group.ranks[0].suspects(8) == []


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("[../third_party/gloo/transport/tcp/pair.cc] Connection closed by peer"), True),
        (RuntimeError("Timed out waiting 5000ms for recv operation to complete"), True),
        (CollectiveError("rank 0 had no plan"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (KeyError("gloo"), False),
    ],
)
def test_only_a_collective_s_error_is_explained(error: Exception, expected: bool) -> None:
    assert is_collective_failure(error) is expected
