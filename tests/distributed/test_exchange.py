"""Means that ranks of one host exchange: what else is on its way, lost and stopped ranks, several hosts."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from hdet_ray import average_parameters
from hdet_ray.optim import averaging
from hdet_ray.optim.averaging import Averager
from hdet_ray.optim.collective import Collective
from hdet_ray.optim.weights import Weights
from tests.distributed.ranks import RankFailedError, run_on_ranks

TIMEOUT_S = 6.0
NUM_RANKS = 3


def average_among_own_messages(rank: int) -> tuple[float, float]:
    """A message of the user's own is under way, and its receiver waits for it, while the ranks average."""
    own, values = torch.full((1000,), 100.0 + rank), torch.full((1000,), float(rank))
    received = torch.zeros(1000)
    work = dist.irecv(received, 1 - rank)
    average_parameters([values])
    dist.send(own, 1 - rank)
    work.wait()
    return values.mean().item(), received.mean().item()


def test_messages_of_the_users_own_are_not_mixed_up_with_ours(tmp_path: Path) -> None:
    results = run_on_ranks(average_among_own_messages, 2, store_path=tmp_path)
    assert results == [(0.5, 101.0), (0.5, 100.0)]


def average_without_one(rank: int, last_one_dies: bool) -> tuple[str, float]:
    """The last rank dies, or comes to no average any more; what the others hear, after how many seconds."""
    group = dist.new_group(timeout=timedelta(seconds=TIMEOUT_S))
    averager = Averager([torch.randn(3_000_000)], group=group, shares_place=True)
    averager.average([1.0] * NUM_RANKS)
    if rank == NUM_RANKS - 1:
        if last_one_dies:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(1.5 * TIMEOUT_S)
        return "", 0.0
    started = time.monotonic()
    with pytest.raises(RuntimeError) as raised:
        averager.average([1.0] * NUM_RANKS)
    waited_s = time.monotonic() - started
    if last_one_dies:
        raise raised.value
    return str(raised.value), waited_s


def test_a_rank_that_does_not_come_is_an_error_after_the_groups_timeout(tmp_path: Path) -> None:
    *others, _ = run_on_ranks(average_without_one, NUM_RANKS, False, store_path=tmp_path)
    # Who times out first closes its connections, which is what the other may hear instead.
    assert any("Timed out" in message for message, _ in others)
    assert all(waited_s >= 0.9 * TIMEOUT_S for _, waited_s in others)


def test_a_rank_that_dies_is_an_error_of_the_others(tmp_path: Path) -> None:
    with pytest.raises(RankFailedError, match="3 of 3 ranks failed") as failed:
        run_on_ranks(average_without_one, NUM_RANKS, True, store_path=tmp_path)
    assert len(re.findall(r"^RuntimeError: ", str(failed.value), re.MULTILINE)) == NUM_RANKS - 1


def average_in_places(rank: int, hosts: str) -> dict[str, Any]:
    """Ranks that believe themselves on these hosts: two replicas of two ranks, and all four by themselves."""
    senders: list[int] = []
    really_send = dist.isend

    def send(*args: Any, **kwargs: Any) -> Any:
        senders.append(rank)
        return really_send(*args, **kwargs)

    def is_exchanged(average: Callable[[], object]) -> bool:
        senders.clear()
        average()
        return bool(senders)

    tensor = torch.full((10,), float(rank))
    net = torch.nn.Linear(10, 1)
    torch.nn.init.constant_(net.weight, rank)
    with (
        mock.patch.object(averaging, "host_id", return_value=hosts[rank]),
        mock.patch.object(dist, "isend", send),
    ):
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replica", "group"))
        optimizer = torch.optim.SGD(net.parameters())
        weights = Weights(optimizer, net, Collective.connect(mesh=mesh), averages_optimizer_state=True)
        seen = {
            "by all": is_exchanged(lambda: average_parameters([tensor])),
            "by peers": is_exchanged(lambda: weights.average([1.0, 1.0])),
        }
    return {**seen, "means": [tensor.mean().item(), net.weight.mean().item()]}


@pytest.mark.parametrize(
    ("hosts", "by_all", "by_peers"),
    # Peers are ranks 0 and 2, and 1 and 3.
    [
        ("aaaa", True, [True, True]),
        ("aabb", False, [False, False]),
        ("abab", False, [True, True]),
        ("aaab", False, [True, False]),
    ],
)
def test_values_are_exchanged_on_one_host_only(
    tmp_path: Path, hosts: str, by_all: bool, by_peers: list[bool]
) -> None:
    for rank, seen in enumerate(run_on_ranks(average_in_places, 4, hosts, store_path=tmp_path)):
        means = [1.5, 1.0 if rank % 2 == 0 else 2.0]
        assert seen == {"by all": by_all, "by peers": by_peers[rank % 2], "means": means}
