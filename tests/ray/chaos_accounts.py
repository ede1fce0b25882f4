"""An independent count of a run's samples, from what its ranks wrote down as they saw them.

Each start of the group is an *incarnation*. A step that several have trained counts as the newest one's:
the weights of the others are gone. What they saw is what the run had to repeat.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Line = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounts:
    """What a run's ranks saw."""

    chain: tuple[tuple[Line, ...], ...]
    """By step: the lines of all ranks of the incarnation that counts."""
    repeats: tuple[int, ...]
    """For each incarnation but the first: rounds of which it trained at least one step once more."""
    num_repeated: int
    """Samples that were seen in vain."""

    def per_round(self) -> dict[int, list[int]]:
        """Samples that count, of each rank, by round."""
        counts: dict[int, Counter[int]] = defaultdict(Counter)
        for lines in self.chain:
            for line in lines:
                counts[line["round"]][line["rank"]] += len(line["samples"])
        return {round: [of_rank[rank] for rank in sorted(of_rank)] for round, of_rank in counts.items()}

    def per_epoch(self) -> dict[int, Counter[int]]:
        """How often each sample counts, by epoch."""
        epochs: dict[int, Counter[int]] = defaultdict(Counter)
        for lines in self.chain:
            for line in lines:
                epochs[line["epoch"]].update(line["samples"])
        return dict(epochs)


def read_lines(out: Path) -> list[Line]:
    """All that was written; a line that a kill cut short is left out."""
    lines: list[Line] = []
    for path in sorted(out.glob("rank-*.jsonl")):
        text = path.read_text(encoding="utf-8")
        lines += [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return lines


def count(lines: list[Line]) -> Accounts:
    """Sort the lines into what counts and what was repeated."""
    by_step: dict[int, dict[float, list[Line]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        by_step[line["step"]][line["began_s"]].append(line)
    chain = []
    # An incarnation may be stopped before it has come as far as the one whose work it took over.
    furthest = max((line["began_s"], line["step"]) for line in lines)[1]
    for step in range(furthest + 1):
        newest = by_step[step][max(by_step[step])]
        assert len(newest) == newest[0]["num_ranks"], f"step {step} counts, but not all ranks trained it"
        chain.append(tuple(sorted(newest, key=lambda line: line["rank"])))
    num_counted = sum(len(line["samples"]) for lines in chain for line in lines)
    return Accounts(
        chain=tuple(chain),
        repeats=_repeats(lines),
        num_repeated=sum(len(line["samples"]) for line in lines) - num_counted,
    )


def _repeats(lines: list[Line]) -> tuple[int, ...]:
    incarnations: dict[float, dict[int, int]] = defaultdict(dict)
    for line in lines:
        incarnations[line["began_s"]][line["step"]] = line["round"]
    repeats, furthest = [], -1
    for _, rounds in sorted(incarnations.items()):
        if furthest >= 0:
            repeats.append(len({round for step, round in rounds.items() if step <= furthest}))
        furthest = max(furthest, *rounds)
    return tuple(repeats)
