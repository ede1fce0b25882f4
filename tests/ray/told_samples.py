"""What a run's ledger tells of samples, against the independent count of what its ranks wrote down."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from hdet_ray.core.replay import read_ledger
from hdet_ray.view.samples import SamplesAccount, account
from tests.ray.chaos_accounts import Accounts


def account_of(ledger: Path) -> SamplesAccount:
    """The ledger's own sums."""
    found = read_ledger(ledger.read_text(encoding="utf-8").splitlines())
    return account(found.items, found.abandoned)


def require_same_sums(told: SamplesAccount, seen: Accounts) -> None:
    """Each replica's samples of each round, and the sum, are what its ranks wrote down; lines name them."""
    counted: Counter[tuple[int, int]] = Counter()
    for lines in seen.chain:
        for line in lines:
            counted[line["round"], line["replica"]] += len(line["samples"])
    for ended in told.rounds:
        own = tuple(counted[ended.round, replica] for replica in range(len(ended.by_replica)))
        assert ended.by_replica == own, ended
        assert ended.samples == sum(own), ended
    assert told.is_counted
    assert told.total == sum(number for (round, _), number in counted.items() if round < len(told.rounds))
    # What was begun of a round that never ended stands in no ledger.
    assert told.lost <= seen.num_repeated


def require_each_sample_once(seen: Accounts, size: int, *, left_out: int = 0) -> None:
    """No epoch holds a sample twice, and those that are over lack at most so many."""
    epochs = seen.per_epoch()
    assert sorted(epochs) == list(range(len(epochs)))
    for epoch, samples in epochs.items():
        assert max(samples.values()) == 1, epoch
        assert epoch == max(epochs) or size - len(samples) <= left_out, epoch
