"""Means that ranks of one host exchange: what else is on its way, lost and stopped ranks, several hosts."""

from __future__ import annotations

import os
import re
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from hdet_ray import average_parameters
from hdet_ray.optim import averaging, collective
from hdet_ray.optim.averaging import Averager
from hdet_ray.optim.collective import Collective
from tests.distributed.ranks import RankFailedError, run_on_ranks

TIMEOUT_S = 3.0
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
    averager = Averager([torch.randn(3_000_000)], group=group, shares_host=True)
    averager.average([1.0] * NUM_RANKS)
    if rank == NUM_RANKS - 1:
        if last_one_dies:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(2 * TIMEOUT_S)
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


def average_on_hosts(rank: int, hosts: tuple[str, ...]) -> dict[str, Any]:
    """Ranks that believe themselves on these hosts: two replicas of two ranks."""
    messages: list[int] = []
    really_send = dist.isend

    def send(*args: Any, **kwargs: Any) -> Any:
        messages.append(rank)
        return really_send(*args, **kwargs)

    tensor = torch.full((10,), float(rank))
    with (
        mock.patch.object(averaging, "host_id", return_value=hosts[rank]),
        mock.patch.object(collective, "host_id", return_value=hosts[rank]),
        mock.patch.object(dist, "isend", send),
    ):
        average_parameters([tensor])
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replica", "group"))
        peers_share_host = Collective.connect(mesh=mesh).peers_share_host
    return {
        "mean": tensor.unique().tolist(),
        "sends to each other": bool(messages),
        "peers share a host": peers_share_host,
    }


@pytest.mark.parametrize(
    ("hosts", "is_exchanged", "peers_share_host"),
    [("aaaa", True, True), ("aabb", False, False), ("abab", False, True), ("aaab", False, None)],
)
def test_values_are_exchanged_on_one_host_only(
    tmp_path: Path, hosts: str, is_exchanged: bool, peers_share_host: bool | None
) -> None:
    for rank, seen in enumerate(run_on_ranks(average_on_hosts, 4, tuple(hosts), store_path=tmp_path)):
        # Of "aaab" ranks 0 and 2 share a host, and 1 and 3 don't.
        expected = rank % 2 == 0 if peers_share_host is None else peers_share_host
        assert seen == {
            "mean": [1.5],
            "sends to each other": is_exchanged,
            "peers share a host": expected,
        }
