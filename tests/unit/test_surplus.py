"""Surplus workers: they make rank 0's collective calls with it, in order, until its loop ends."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray")

import torch.distributed as dist

from hdet_ray.exceptions import CollectiveError
from hdet_ray.train import surplus
from hdet_ray.train.surplus import Leader, follow


class Calls(SimpleNamespace):
    """Ray's functions, which write down that they were called."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Any] = []

    def report(self, metrics: dict[str, Any], **options: Any) -> None:
        self.made.append(("report", metrics, options.get("checkpoint")))

    def barrier(self) -> None:
        self.made.append("barrier")

    def get_preemption_info(self) -> None:
        self.made.append("get_preemption_info")

    def broadcast_from_rank_zero(self, data: Any) -> Any:
        self.made.append(("broadcast", data))
        return data


@pytest.fixture
def store() -> dist.HashStore:
    return dist.HashStore()


def test_a_surplus_worker_makes_the_same_calls_empty_handed_and_ends(store: dist.HashStore) -> None:
    leading, following = Calls(), Calls()
    leader = Leader(store)
    leader.announce_calls_of(leading)
    worker = threading.Thread(target=follow, args=(store, following))
    worker.start()
    leading.report({"loss": 1.0}, checkpoint="files")
    leading.barrier()
    assert leading.broadcast_from_rank_zero("word") == "word"
    leading.get_preemption_info()
    leader.end()
    worker.join(timeout=20)
    assert not worker.is_alive()
    assert leading.made == [
        ("report", {"loss": 1.0}, "files"),
        "barrier",
        ("broadcast", "word"),
        "get_preemption_info",
    ]
    assert following.made == [("report", {}, None), "barrier", ("broadcast", None), "get_preemption_info"]


def test_old_calls_do_not_pile_up_in_the_store(
    store: dist.HashStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surplus, "_KEPT_CALLS", 5)
    leading = Calls()
    Leader(store).announce_calls_of(leading)
    for _ in range(50):
        leading.barrier()
    assert store.num_keys() <= 6


def test_a_store_that_is_gone_ends_the_waiting() -> None:
    class Gone:
        def wait(self, *_: Any) -> None:
            raise dist.DistNetworkError("connection reset")

    with pytest.raises(CollectiveError, match="rank 0's process is gone"):
        follow(Gone(), Calls())  # type: ignore[arg-type]
