"""Digests: are replicas that must be equal still equal, bit for bit?

A silent divergence (a flipped bit, a rank that missed an update) shows in a curve that looks odd, long
after. Every few rounds each rank adds up the bits of every parameter as integers, on the device, and the
ranks compare the sums: one gather of two numbers, more only where they differ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hdet_ray.exceptions import DivergenceError
from hdet_ray.optim.collective import Collective

_NAMED_TENSORS = 3
"""How many tensors an error names; one is enough to look for the cause."""
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bit_sums(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    """Sum of each tensor's elements, their bits read as integers; one host-device sync.

    Any single flipped bit changes its tensor's sum. NaNs are bits like others.
    """
    if not tensors:
        return ()
    sums = torch.stack([_bit_sum(tensor.detach()).to(tensors[0].device) for tensor in tensors])
    return tuple(sums.tolist())


class EqualityCheck:
    """Compares parameters across replicas.

    Args:
        collective: The run's ranks.
        parameters: By name; the same on every rank. Replicas must agree on them at a boundary.
    """

    def __init__(self, collective: Collective, parameters: Mapping[str, Tensor]) -> None:
        self._collective = collective
        self._parameters = dict(parameters)

    def run(self, round: int) -> None:
        """Compare; collective. At a boundary, where replicas are equal.

        Args:
            round: The round that ends there, for the message.

        Raises:
            DivergenceError: on every rank; names the ranks, the first tensors that differ, and the round.
        """
        sums = bit_sums(list(self._parameters.values()))
        rows = self._collective.gather_row(_two_numbers(sums))
        suspects = self._disagreeing(rows)
        if not suspects:
            return
        everyone = self._collective.gather_objects(sums)
        raise DivergenceError(self._evidence(everyone, suspects, round))

    def _disagreeing(self, rows: Sequence[Sequence[float]]) -> list[list[int]]:
        """Sets of ranks that must be equal and are not."""
        return [ranks for ranks in self._equal_ranks() if len({tuple(rows[rank]) for rank in ranks}) > 1]

    def _equal_ranks(self) -> list[list[int]]:
        """Ranks that were averaged with each other. Ranks of one replica are not compared where there are
        others: each averages with its own peers, and sums of other orders differ in the last bit."""
        g, n = self._collective.ranks_per_replica, self._collective.num_replicas
        return [list(range(g))] if n == 1 else [list(range(i, n * g, g)) for i in range(g)]

    def _evidence(
        self, everyone: Sequence[Sequence[int]], suspects: Sequence[Sequence[int]], round: int
    ) -> str:
        findings = []
        for ranks in suspects:
            kinds: dict[tuple[int, ...], list[int]] = {}
            for rank in ranks:
                kinds.setdefault(tuple(everyone[rank]), []).append(rank)
            usual, *others = sorted(kinds.values(), key=lambda group: (-len(group), group))
            for group in others:
                names = self._differing(everyone[group[0]], everyone[usual[0]])
                findings.append(f"{_list(group)} differ from {_list(usual)} in {names}")
        return (
            f"replicas that must be equal are not, after round {round}: {'; '.join(findings)}. Go on from a "
            "checkpoint; if it comes again, test those ranks' memory and devices, and see that nothing but "
            "the optimizer writes parameters"
        )

    def _differing(self, sums: Sequence[int], usual: Sequence[int]) -> str:
        names = [
            name for name, ours, theirs in zip(self._parameters, sums, usual, strict=True) if ours != theirs
        ]
        more = f" and {len(names) - _NAMED_TENSORS} more" if len(names) > _NAMED_TENSORS else ""
        return ", ".join(names[:_NAMED_TENSORS]) + more + f" (of {len(self._parameters)})"


def _bit_sum(tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    flat = tensor.contiguous().view(-1)
    per_word = 8 // tensor.element_size()
    if flat.storage_offset() % per_word:
        flat = flat.clone()  # words begin at its first element, wherever it lies
    num_whole = len(flat) - len(flat) % per_word
    # In words of 64 bits: a sixteenth of the time of widening each element. Overflow wraps around.
    words = flat[:num_whole].view(torch.int64).sum()
    rest = flat[num_whole:].view(_INTEGERS[tensor.element_size()]).sum(dtype=torch.int64)
    return words + rest


def _two_numbers(sums: Sequence[int]) -> list[float]:
    """A digest that a row of floats carries without rounding."""
    digest = hashlib.blake2b(repr(tuple(sums)).encode(), digest_size=12).digest()
    return [float(int.from_bytes(part, "big")) for part in (digest[:6], digest[6:])]


def _list(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"rank {shown}" if len(ranks) == 1 else f"ranks {shown}"
