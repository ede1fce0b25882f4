"""Shards of real Ray datasets: Ray splits by the rule that positions rest on, and a run resumes by it."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")

import ray.data
from ray.train import FailureConfig, RunConfig, ScalingConfig

from hdet_ray import HDETTrainer
from hdet_ray.data import ElasticDataConfig
from hdet_ray.train.layout import LEDGER_FILE
from tests.ray.chaos_accounts import count, read_lines
from tests.ray.shard_loops import ROUND_STEPS, train
from tests.ray.told_samples import account_of, require_each_sample_once, require_same_sums
from tests.unit.rays_split import RaysSplit

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]

NUM_ROWS, BATCH_SIZE = 103, 4


def late(batch: dict[str, Any]) -> dict[str, Any]:
    """Blocks are ready in another order than they are read in."""
    time.sleep(0.05 * (batch["id"][0] % 3))
    return batch


def dataset() -> Any:
    return ray.data.range(NUM_ROWS, override_num_blocks=7).map_batches(late, batch_size=None)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 5])
def test_ray_gives_batch_j_to_rank_j_mod_w_whichever_block_is_ready_first(num_ranks: int) -> None:
    splits = ElasticDataConfig(batch_size=BATCH_SIZE).configure({"train": dataset()}, num_ranks, None, None)
    taken: dict[int, list[list[int]]] = {}

    def take(rank: int) -> None:
        batches = splits[rank]["train"].iter_batches(batch_size=BATCH_SIZE, batch_format="numpy")
        taken[rank] = [batch["id"].tolist() for batch in batches]

    threads = [threading.Thread(target=take, args=(rank,)) for rank in range(num_ranks)]
    for thread in threads:  # together: an epoch begins when all have asked for it
        thread.start()
    for thread in threads:
        thread.join()
    for rank in range(num_ranks):
        expected = [b["id"] for b in RaysSplit(NUM_ROWS, rank, num_ranks).iter_batches(BATCH_SIZE)]
        assert taken[rank] == expected


def fit(out: Path, num_workers: Any, stop: int, kill: list[int] | None = None, **options: Any) -> None:
    HDETTrainer(
        train,
        train_loop_config={"out": str(out), "stop": stop, "kill": kill},
        scaling_config=ScalingConfig(num_workers=num_workers),
        run_config=RunConfig(
            name="shards", storage_path=str(out / "stored"), failure_config=FailureConfig(max_failures=2)
        ),
        datasets={"train": dataset()},
        dataset_config=ElasticDataConfig(batch_size=BATCH_SIZE),
        keeps_warm_workers=False,
        **options,
    ).fit()


@pytest.mark.slow
def test_a_killed_run_that_goes_on_with_other_numbers_of_ranks_takes_every_row_once(tmp_path: Path) -> None:
    fit(tmp_path, 2, stop=18, kill=[1, 10])  # the first epoch ends at step 13
    fit(tmp_path, 3, stop=27)
    fit(tmp_path, (2, 3), stop=42, ranks_per_replica=2)  # one worker is left over
    seen = count(read_lines(tmp_path))
    assert [len(lines) for lines in seen.chain] == [2] * 18 + [3] * 9 + [2] * 15
    assert seen.repeats == (1, 0, 0)  # the round that the kill interrupted
    assert seen.num_repeated <= 2 * ROUND_STEPS * BATCH_SIZE
    # In the second and third epoch the number of ranks changed.
    require_each_sample_once(seen, NUM_ROWS, left_out=2 + 2 * BATCH_SIZE)
    told = account_of(tmp_path / "stored" / "shards" / LEDGER_FILE)
    require_same_sums(told, seen)
    assert [len(told.rounds[k].by_replica) for k in (0, 6, 9)] == [2, 3, 1]
    assert told.lost == 0  # the interrupted round never ended


def test_a_dataset_without_a_fixed_order_is_refused_with_the_remedy(tmp_path: Path) -> None:
    trainer = HDETTrainer(
        train,
        train_loop_config={"out": str(tmp_path), "stop": 3},
        scaling_config=ScalingConfig(num_workers=1),
        run_config=RunConfig(storage_path=str(tmp_path / "stored")),
        datasets={"train": dataset()},
        keeps_warm_workers=False,
    )
    with pytest.raises(Exception, match="ElasticDataConfig"):
        trainer.fit()
