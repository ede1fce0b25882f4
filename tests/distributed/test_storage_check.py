"""A storage path that not all nodes see is found at the start, by name."""

from __future__ import annotations

from pathlib import Path

import pyarrow.fs as pafs

from hdet_ray.exceptions import ConfigError
from hdet_ray.optim.collective import Collective
from hdet_ray.train.storage_check import require_shared_storage
from tests.distributed.ranks import run_on_ranks


def check(rank: int, disks: tuple[str, ...], nodes: tuple[str, ...]) -> str:
    """What a rank is told whose node mounts its own disk at the run's path."""
    filesystem = pafs.SubTreeFileSystem(disks[rank], pafs.LocalFileSystem())
    try:
        require_shared_storage(Collective.connect(), filesystem, "runs/x", node=nodes[rank])
    except ConfigError as error:
        return str(error)
    return ""


def test_nodes_that_share_the_storage_pass_and_leave_nothing_behind(tmp_path: Path) -> None:
    disk = str(tmp_path)
    assert run_on_ranks(check, 3, (disk,) * 3, ("a", "a", "b"), store_path=tmp_path) == [""] * 3
    assert list((tmp_path / "runs" / "x").iterdir()) == []


def test_nodes_with_a_disk_of_their_own_are_named_on_every_rank(tmp_path: Path) -> None:
    shared, other = str(tmp_path / "shared"), str(tmp_path / "other")
    for disk in (shared, other):
        Path(disk).mkdir()
    told = run_on_ranks(check, 4, (shared, shared, other, other), ("a", "b", "c", "d"), store_path=tmp_path)
    assert len(set(told)) == 1
    assert "node a writes to the storage runs/x, and nodes c, d can't read it there" in told[0]
    assert "use RunConfig(storage_path=…) on a shared file system" in told[0]


def test_a_storage_that_cannot_be_written_is_every_rank_s_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file where a folder should be")
    told = run_on_ranks(check, 2, (str(tmp_path),) * 2, ("a", "b"), store_path=tmp_path)
    assert all("the storage can't be written at runs/x" in message for message in told)
