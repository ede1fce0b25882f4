"""How long does nobody train, after a worker or a node is lost, and when does a new node train along?

Seconds from the fault to the first new step: the first step that a group which was started after the fault
has done. One elastic run on a cluster of raylets on this machine goes through cycles of four faults:

- `worker_killed_s`: SIGKILL of one of 4 workers; its node stays.
- `node_killed_s`: SIGKILL of a node with one worker, 4 → 3.
- `node_sigterm_s`: SIGTERM of a node with one worker, 3 → 2.
- `node_added_s`: two nodes come, 2 → 4; from when the second is up to the first step of four workers. The old
  group trains on meanwhile: `old_group_trains_s`.

Three sides take turns: `HDETTrainer` at its defaults; `ray_train_…`, a TorchTrainer at Ray's defaults with
torch's `OneCycleLR` and a checkpoint as often; `ray_train_tuned_…`, the same with the environment settings
alone that `HDETTrainer` makes. Ours is to stay 30 % below the first and not above the second. All look for
new nodes each second (Ray's default is a minute). `parts` says where the seconds go.

A fault is made when the group has trained for some seconds and no waiting process is busy any more: ours
keeps processes ready, which takes some seconds after each start (a fault before that costs a cold start).
`--quick`: ours alone, three cycles.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from benchmarks.measure import print_table, summary, write_result
from benchmarks.ray_nodes import RayNodes, cpu_s_of_idle_processes, ray_nodes
from benchmarks.recovery_loops import Timeline, train_plainly, train_with_hdet
from hdet_ray.train.elastic import recovery_settings
from hdet_ray.train.settings import defaults_in_environment
from hdet_ray.train.trainer import HDETTrainer

FAULTS = ("worker_killed", "node_sigterm", "node_killed", "node_added")
PARTS = ("detect", "end_group", "retries", "start_processes", "restore", "first_step")
SHARE_OF_DEFAULTS = 0.7
SHARE_OF_TUNED = 1.0
COLLECTIVE_TIMEOUT_S = 60.0
"""HDETTrainer's default, which its environment settings follow from."""
RESIZE_CHECK_S = 1.0
_PATIENCE_S = 300.0
_POLL_S = 0.1
_LONGEST_SETTLE_S = 60.0
_QUIET_CPU_S = 0.1
"""In a second, of all processes that wait."""

Line = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of those that are compared."""

    prefix: str
    """Of its figures' names."""
    loop: Callable[[dict[str, Any]], None]
    trainer: type[TorchTrainer]
    settings: Mapping[str, str]
    """Environment that it runs under."""
    settle_s: float
    """Between a group's first step and the next fault, at least."""


TUNED = recovery_settings(COLLECTIVE_TIMEOUT_S)
OURS = Side(prefix="", loop=train_with_hdet, trainer=HDETTrainer, settings={}, settle_s=8.0)
TWINS = (
    Side(prefix="ray_train_", loop=train_plainly, trainer=TorchTrainer, settings={}, settle_s=5.0),
    Side(prefix="ray_train_tuned_", loop=train_plainly, trainer=TorchTrainer, settings=TUNED, settle_s=5.0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """One fault, and what came after."""

    fault: str
    seconds: float
    parts: dict[str, float]
    """Of ``seconds``; they add up."""
    old_group_trains_s: float
    """For how long after the fault the group before it still did steps."""
    warm: int
    """Processes of the new group that had been started before the fault."""


@dataclass(slots=True)
class Watched:
    """A run in a thread, and what its processes have written down."""

    out: Path
    error: BaseException | None = None
    thread: threading.Thread | None = None
    _lines: list[Line] = field(default_factory=list)
    _read_until: dict[Path, int] = field(default_factory=dict)

    def wait_for(self, seen: Callable[[list[Line]], Line | None], what: str) -> Line:
        """The first line that shows it.

        Raises:
            SystemExit: it doesn't come.
        """
        deadline = time.monotonic() + _PATIENCE_S
        while (line := seen(self.lines())) is None:
            if self.thread is None or not self.thread.is_alive():
                raise SystemExit(f"the run ended before {what}: {self.error}")
            if time.monotonic() > deadline:
                raise SystemExit(f"no {what} within {_PATIENCE_S:g} s")
            time.sleep(_POLL_S)
        return line

    def lines(self) -> list[Line]:
        """All lines so far, in the order of time."""
        for path in self.out.glob("*.jsonl"):
            with path.open() as stream:
                stream.seek(self._read_until.get(path, 0))
                text = stream.read()
            whole = text[: text.rfind("\n") + 1]  # a line may be half written
            self._read_until[path] = self._read_until.get(path, 0) + len(whole)
            self._lines += [json.loads(line) for line in whole.splitlines()]
        self._lines.sort(key=lambda line: line["at_s"])
        return self._lines


@contextmanager
def running(side: Side, out: Path) -> Iterator[Watched]:
    """A run of one side, until the block ends."""
    out.mkdir()
    trainer = side.trainer(
        side.loop,
        train_loop_config={"out": str(out)},
        scaling_config=ScalingConfig(num_workers=(1, 4), elastic_resize_monitor_interval_s=RESIZE_CHECK_S),
        run_config=RunConfig(
            name="recovery",
            storage_path=str(out / "stored"),
            failure_config=FailureConfig(max_failures=-1),
            checkpoint_config=CheckpointConfig(num_to_keep=3),
            callbacks=[Timeline(str(out))],
        ),
    )
    watched = Watched(out)

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:  # whatever ended it is what is printed
            watched.error = error

    with defaults_in_environment(side.settings):
        watched.thread = threading.Thread(target=fit, daemon=True)
        watched.thread.start()
        try:
            yield watched
        finally:
            (out / "stop").write_text("")
            watched.thread.join(60)


def first_step(lines: list[Line], after_s: float, not_of: set[int], world: int | None) -> Line | None:
    """The first step after a time of a group whose rank 0 is none of these processes."""
    for line in lines:
        is_new = line["what"] == "step" and line["at_s"] > after_s and line["pid"] not in not_of
        if is_new and world in (None, line["world"]):
            return line
    return None


def measure(run: Watched, fault: str, act: Callable[[], float], world: int, settle_s: float) -> Recovery:
    """Make a fault, and wait until the run is back and has settled.

    Args:
        run: What it is made in.
        fault: Its name.
        act: Makes it; gives its moment, in seconds of this machine's clock.
        world: How many workers there are to be in the end.
        settle_s: How long they shall then have trained.
    """
    old = {line["pid"] for line in run.lines() if line["what"] == "step"}
    at_s = act()
    is_growth = fault == "node_added"
    new = run.wait_for(
        lambda lines: first_step(lines, at_s, old, world if is_growth else None), f"step after {fault}"
    )
    whole = run.wait_for(lambda lines: first_step(lines, at_s, old, world), f"step of {world} workers")
    settle(whole["at_s"] + settle_s)
    lines = run.lines()
    entered = [line for line in lines if line["what"] == "entered" and at_s < line["at_s"] < new["at_s"]]
    old_steps = [line["at_s"] for line in lines if line["what"] == "step" and line["pid"] in old]
    return Recovery(
        fault=fault,
        seconds=new["at_s"] - at_s,
        parts=parts_of(lines, at_s, new),
        old_group_trains_s=max(0.0, max(old_steps) - at_s),
        warm=sum(line["process_began_at_s"] < at_s for line in entered[-new["world"] :]),
    )


def settle(until_s: float) -> None:
    """Wait until then at least, and until no waiting process is busy."""
    time.sleep(max(0.0, until_s - time.time()))
    used_s, deadline = cpu_s_of_idle_processes(), time.monotonic() + _LONGEST_SETTLE_S
    while time.monotonic() < deadline:
        time.sleep(1.0)
        before_s, used_s = used_s, cpu_s_of_idle_processes()
        if abs(used_s - before_s) < _QUIET_CPU_S:
            return


def parts_of(lines: list[Line], at_s: float, new: Line) -> dict[str, float]:
    """Where the seconds between a fault and a new step went."""
    between = [line for line in lines if at_s <= line["at_s"] <= new["at_s"]]

    def last(what: str, **fields: Any) -> float:
        found = [
            line["at_s"]
            for line in between
            if line["what"] == what and all(line.get(name) == value for name, value in fields.items())
        ]
        return found[-1] if found else at_s

    reactions = [
        line["at_s"]
        for line in between
        if line["what"] in ("RestartingState", "ResizingState", "PreemptingState")
    ]
    ends = [line["at_s"] for line in between if line["what"] == "group_ended"]
    marks = [
        at_s,
        reactions[0] if reactions else at_s,
        ends[0] if ends else at_s,
        last("group_starts"),
        last("entered"),
        last("restored", pid=new["pid"]),
        new["at_s"],
    ]
    ordered = [max(marks[: i + 1]) for i in range(len(marks))]
    return {name: b - a for name, (a, b) in zip(PARTS, pairwise(ordered), strict=True)}


def cycle(run: Watched, nodes: RayNodes, taken: list[Any], settle_s: float) -> list[Recovery]:
    """The four faults, in turn. ``taken``: the two nodes that may go; afterwards those that have come."""

    def kill_worker() -> float:
        entered = [line for line in run.lines() if line["what"] == "entered" and line["rank"] == 1]
        at_s = time.time()
        os.kill(entered[-1]["pid"], signal.SIGKILL)
        return at_s

    def remove(by: Callable[[Any], None]) -> float:
        at_s = time.time()
        by(taken.pop())
        return at_s

    def add() -> float:
        taken[:] = [nodes.add(is_awaited=False), nodes.add()]
        return time.time()

    return [
        measure(run, "worker_killed", kill_worker, 4, settle_s),
        measure(run, "node_killed", lambda: remove(nodes.kill), 3, settle_s),
        measure(run, "node_sigterm", lambda: remove(nodes.stop), 2, settle_s),
        measure(run, "node_added", add, 4, settle_s),
    ]


def measure_all(
    blocks: list[list[tuple[Side, int]]], folder: Path, recoveries: dict[str, list[Recovery]]
) -> None:
    """Add what is measured to ``recoveries``, by prefix. A block is a turn of the sides and their cycles."""
    with ray_nodes() as nodes:
        for _ in range(2):
            nodes.add()  # these stay
        taken = [nodes.add(), nodes.add()]
        for number, block in enumerate(blocks):
            for side, cycles in block:
                out = folder / f"{number}-{side.prefix or 'ours'}"
                with running(side, out) as run:
                    begun = run.wait_for(lambda lines: first_step(lines, 0, set(), 4), "the first step")
                    settle(begun["at_s"] + side.settle_s)
                    for _ in range(cycles):
                        found = cycle(run, nodes, taken, side.settle_s)
                        recoveries.setdefault(side.prefix, []).extend(found)
                        told = "  ".join(
                            f"{each.fault} {each.seconds:.1f} ({each.warm} warm)" for each in found
                        )
                        print(f"{side.prefix or 'ours'}: {told}", flush=True)


def figures(recoveries: Mapping[str, list[Recovery]]) -> dict[str, Any]:
    """Medians under the names that are asked for, with what they consist of."""
    payload: dict[str, Any] = {}
    details: dict[str, Any] = {}
    for fault in FAULTS:
        for prefix, all_of_side in recoveries.items():
            found = [each for each in all_of_side if each.fault == fault]
            payload[f"{prefix}{fault}_s"] = statistics.median(each.seconds for each in found)
            details[f"{prefix}{fault}"] = {
                "seconds": summary([each.seconds for each in found]),
                "values_s": [round(each.seconds, 3) for each in found],
                "parts_s": {part: statistics.median(each.parts[part] for each in found) for part in PARTS},
                "old_group_trains_s": statistics.median(each.old_group_trains_s for each in found),
                "warm_processes": [each.warm for each in found],
            }
    return payload | {"details": details}


def print_figures(payload: Mapping[str, Any], prefixes: list[str]) -> None:
    """Tables: all sides, ratios to the twins, and where the seconds go."""
    names = {prefix: prefix.rstrip("_") or "ours" for prefix in prefixes}
    rows: list[list[Any]] = []
    for fault in FAULTS:
        seconds = [payload[f"{prefix}{fault}_s"] for prefix in prefixes]
        rows.append([fault, *seconds, *(seconds[0] / other for other in seconds[1:])])
    ratio_names = [f"/ {names[twin]}" for twin in prefixes[1:]]
    print_table(
        f"seconds to the first new step, medians; ratios at most {SHARE_OF_DEFAULTS}, {SHARE_OF_TUNED}",
        ["", *names.values(), *ratio_names],
        rows,
    )
    details = payload["details"]
    rows = []
    for fault in FAULTS:
        for prefix, name in names.items():
            of = details[f"{prefix}{fault}"]
            rows.append([f"{name} {fault}", *of["parts_s"].values(), of["old_group_trains_s"]])
    print_table("where they go, medians", ["", *PARTS, "old group trains"], rows)


def _ours_first(turn: tuple[Side, int]) -> bool:
    return turn[0] is not OURS


def main() -> None:
    """Measure, print tables, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="ours alone, 3 cycles, and no file without --output"
    )
    parser.add_argument("--output", type=Path, default=None, help="the JSON file to write")
    parser.add_argument("--cycles", type=int, default=None, help="ours alone, so many cycles")
    arguments = parser.parse_args()
    if arguments.quick or arguments.cycles:
        blocks = [[(OURS, arguments.cycles or 3)]]
    else:
        blocks = [[(side, cycles) for side in (*TWINS, OURS)] for cycles in (2, 2, 1)]

    recoveries: dict[str, list[Recovery]] = {}
    try:
        with tempfile.TemporaryDirectory(prefix="hb-", ignore_cleanup_errors=True) as folder:
            measure_all(blocks, Path(folder), recoveries)
    except KeyboardInterrupt:
        if recoveries.keys() != {side.prefix for side, _ in blocks[0]}:
            raise
        print("cut short: what was measured until now")
    recoveries = {side.prefix: recoveries[side.prefix] for side, _ in sorted(blocks[0], key=_ours_first)}
    payload: dict[str, Any] = {
        "bounds": {"of_ray_train": SHARE_OF_DEFAULTS, "of_ray_train_tuned": SHARE_OF_TUNED},
        "tuned_settings": TUNED,
        "resize_check_s": RESIZE_CHECK_S,
        "settle_s": {side.prefix or "ours": side.settle_s for side in (OURS, *TWINS)},
        **figures(recoveries),
    }
    print_figures(payload, list(recoveries))
    if arguments.output or not (arguments.quick or arguments.cycles):
        print(f"\nwritten to {write_result('recovery', payload, arguments.output)}")


if __name__ == "__main__":
    main()
