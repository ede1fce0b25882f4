"""Shards of Ray datasets that know where they are, over `ray.train.get_dataset_shard`.

Ray splits a stream of blocks among the ranks as they come, and forgets. `ElasticDataConfig` makes the split
a rule: the rows come in the dataset's own order, in blocks of one batch, and batch j of the epoch goes to
rank j mod W. Each rank takes one batch a step, so what all ranks together have taken is the first k batches,
and another number of ranks goes on at batch k: each leaves out those of its batches that lie before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import ray.train
from ray.train import DataConfig

from hdet_ray.exceptions import CheckpointError, ConfigError

_MARK = "hdet_batch_size"
"""What an iterator of Ray's carries from the config to the worker."""


class ElasticDataConfig(DataConfig):
    """A DataConfig under which `get_dataset_shard` gives shards that can be resumed at any world size.

    Args:
        batch_size: Rows that one rank takes in a step.
        datasets_to_split: As in Ray's DataConfig: ``"all"``, or names.
        execution_options: As in Ray's DataConfig; ``preserve_order`` is set for what is split.

    Raises:
        ConfigError: ``batch_size`` below 1.
    """

    def __init__(
        self, *, batch_size: int, datasets_to_split: Any = "all", execution_options: Any = None
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size} must be at least 1: the rows of one rank's step")
        super().__init__(datasets_to_split, execution_options, enable_shard_locality=False)
        self.batch_size = batch_size

    def configure(self, datasets: dict[str, Any], *args: Any, **options: Any) -> list[dict[str, Any]]:
        batched = {
            name: dataset.repartition(target_num_rows_per_block=self.batch_size, strict=True)
            if self._splits(name)
            else dataset
            for name, dataset in datasets.items()
        }
        shards: list[dict[str, Any]] = super().configure(batched, *args, **options)
        for shard in shards:
            for name in filter(self._splits, shard):
                setattr(shard[name], _MARK, self.batch_size)
        return shards

    def _resolve_execution_options(self, dataset_name: str) -> Any:
        options = super()._resolve_execution_options(dataset_name)
        if self._splits(dataset_name):
            options.preserve_order = True
        return options

    def _splits(self, name: str) -> bool:
        return self._datasets_to_split == "all" or name in self._datasets_to_split


def get_dataset_shard(name: str) -> DatasetShard:
    """This rank's share of a dataset of the trainer's; every rank calls it, before `attach`.

    Pass it on as ``attach(…, sampler=shard)``: its position is saved with each checkpoint, and comes back.

    Args:
        name: As in ``HDETTrainer(datasets={name: …}, dataset_config=ElasticDataConfig(batch_size=…))``.

    Raises:
        ConfigError: the dataset is not split by an `ElasticDataConfig`.
    """
    iterator = ray.train.get_dataset_shard(name)
    batch_size: int | None = getattr(iterator, _MARK, None)
    if batch_size is None:
        raise ConfigError(
            f"dataset {name!r} is not split in a fixed order; use HDETTrainer(…, dataset_config="
            "hdet_ray.data.ElasticDataConfig(batch_size=…)) with at least one worker, or "
            "ray.train.get_dataset_shard for a dataset that needs no position"
        )
    context = ray.train.get_context()
    return DatasetShard(
        iterator, batch_size=batch_size, rank=context.get_world_rank(), num_ranks=context.get_world_size()
    )


class DatasetShard:
    """One rank's share of a dataset, with a position that any number of ranks can go on from.

    What it guarantees, for ranks that stand at the same step whenever its state is saved: a run that resumes
    repeats and skips nothing of what its checkpoint counts, at any world size. At an epoch's end Ray leaves
    out fewer rows than there are ranks, to give each the same number. In an epoch in which the number of
    ranks changed, fewer batches than there are ranks may be left out too, because what is left does not
    come out even; its last step may have fewer rows on some ranks than on others.

    What it needs: a dataset that gives the same rows in the same order whenever it is read. Reads and maps
    do; a filter or a shuffle does where its own result is repeatable (``random_shuffle(seed=…)`` with a
    fixed number of blocks). Every epoch has the same order. Batches before the position are read again and
    thrown away, so a restart late in an epoch takes the time of reading up to there.

    Args:
        iterator: Ray's shard of an `ElasticDataConfig`.
        batch_size: Rows of a block, and of a batch.
        rank: This rank among those that share the dataset.
        num_ranks: How many those are.
    """

    def __init__(self, iterator: Any, *, batch_size: int, rank: int, num_ranks: int) -> None:
        self.iterator = iterator
        """Ray's own, for ``schema`` and ``stats``; what is taken from it is not counted."""
        self.batch_size = batch_size
        self.epoch = 0
        """Epochs that are over."""
        self.samples_taken = 0
        """Rows that this rank has taken since the shard was made; reports tell their number."""
        self._rank = rank
        self._num_ranks = num_ranks
        self._batches_taken = 0
        """Batches of this epoch that all ranks together have taken."""

    def iter_batches(self, **options: Any) -> Iterator[Any]:
        """The epoch's batches from here on, as `ray.data.DataIterator.iter_batches` gives them.

        Args:
            options: Its own, but for ``batch_size`` (the config's) and ``local_shuffle_…``, which would mix
                rows across the position.

        Raises:
            ConfigError: one of those.
        """
        return self._counted(self.iterator.iter_batches, options)

    def iter_torch_batches(self, **options: Any) -> Iterator[Any]:
        """The same as `ray.data.DataIterator.iter_torch_batches` gives them."""
        return self._counted(self.iterator.iter_torch_batches, options)

    def state_dict(self) -> dict[str, int]:
        """Epoch, and batches taken in it by all ranks together."""
        return {"epoch": self.epoch, "batches": self._batches_taken, "batch_size": self.batch_size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where another shard of the dataset was, of this or another world size.

        Raises:
            CheckpointError: it had another batch size.
        """
        if state["batch_size"] != self.batch_size:
            raise CheckpointError(
                f"the checkpoint counts batches of {state['batch_size']} rows, this run's "
                f"ElasticDataConfig has batch_size={self.batch_size}; resume with {state['batch_size']}"
            )
        self.epoch, self._batches_taken = state["epoch"], state["batches"]

    def _counted(self, take: Callable[..., Iterable[Any]], options: dict[str, Any]) -> Iterator[Any]:
        refused = sorted(name for name in options if name == "batch_size" or name.startswith("local_shuffle"))
        if refused:
            raise ConfigError(
                f"{refused[0]}={options[refused[0]]!r} would mix rows across the shard's position; the batch "
                "size is ElasticDataConfig's, and a shuffle belongs into the dataset, with a seed"
            )
        return self._batches(take, options)

    def _batches(self, take: Callable[..., Iterable[Any]], options: dict[str, Any]) -> Iterator[Any]:
        skipped, is_one_ahead = _place(self._batches_taken, self._rank, self._num_ranks)
        batches: Iterator[Any] = islice(iter(take(batch_size=self.batch_size, **options)), skipped, None)
        for batch in _all_but_last(batches) if is_one_ahead else batches:
            self._batches_taken += self._num_ranks
            self.samples_taken += _num_rows(batch)
            yield batch
        self.epoch, self._batches_taken = self.epoch + 1, 0


def _place(taken: int, rank: int, num_ranks: int) -> tuple[int, bool]:
    """How many of a rank's batches lie before the position, and whether it has one more left than others.

    Rank r has the batches r, r + W, r + 2 W, …; of the first k of the epoch that is ceil((k - r) / W).
    """
    begun = taken % num_ranks
    return max(-(-(taken - rank) // num_ranks), 0), 0 < begun <= rank


def _all_but_last(batches: Iterator[Any]) -> Iterator[Any]:
    held = next(batches, None)
    for batch in batches:
        yield held
        held = batch


def _num_rows(batch: Any) -> int:
    """Rows of a batch in any of Ray's formats: columns, an Arrow table, a data frame, collated tensors."""
    if isinstance(batch, Mapping):
        batch = next(iter(batch.values()))
    elif isinstance(batch, tuple | list):
        batch = batch[0]
    rows: int | None = getattr(batch, "num_rows", None)
    return len(batch) if rows is None else rows
