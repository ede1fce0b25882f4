"""One elastic run under a test's hand: it is started in a thread, watched by what its ranks write down."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.train import FailureConfig, Result, RunConfig, ScalingConfig

from hdet_ray.config import Fixed
from hdet_ray.train.trainer import HDETTrainer
from tests.ray.elastic_loops import ROUND_STEPS, train

FAN_OUT = Fixed(alpha=1 / 9, sync_every=ROUND_STEPS, gradient_sync="shared")
_PATIENCE_S = 300.0
"""Of a busy machine; what is waited for comes in a fraction of it."""


class ElasticRun:
    """A run of `elastic_loops.train`.

    Args:
        out: Folder for the run and what its ranks write.
        num_workers: Smallest and largest number of workers.
        loop: What to tell the loop besides.
        options: Further arguments of `HDETTrainer`.
    """

    def __init__(
        self, out: Path, num_workers: tuple[int, int], loop: dict[str, Any] | None = None, **options: Any
    ) -> None:
        self.out = out
        self.result: Result | None = None
        self.error: BaseException | None = None
        self._lines: list[dict[str, Any]] = []
        self._read_until: dict[Path, int] = {}
        settings = {"out": str(out), "total_steps": 100_000, "controller": FAN_OUT} | (loop or {})
        self._trainer = HDETTrainer(
            train,
            train_loop_config=settings,
            scaling_config=ScalingConfig(num_workers=num_workers, elastic_resize_monitor_interval_s=1),
            run_config=RunConfig(
                name="elastic",
                storage_path=str(out / "stored"),
                failure_config=FailureConfig(max_failures=20),
            ),
            **options,
        )
        self._thread = threading.Thread(target=self._fit, daemon=True)
        self._thread.start()

    def _fit(self) -> None:
        try:
            self.result = self._trainer.fit()
        except BaseException as error:  # whatever ended it is what the test wants to read
            self.error = error

    def wait_for(self, seen: Callable[[list[dict[str, Any]]], bool], what: str) -> None:
        """Return once the lines of all ranks show it.

        Raises:
            AssertionError: the run has ended, or it took too long.
        """
        deadline = time.monotonic() + _PATIENCE_S
        while not seen(self.lines()):
            assert self._thread.is_alive(), f"the run ended before {what}: {self.error}"
            assert time.monotonic() < deadline, f"no {what} within {_PATIENCE_S:g} s"
            self._thread.join(0.2)

    def wait_for_rounds(self, world_size: int, count: int = 3, after_step: int = -1) -> None:
        """Return once a group of this many ranks has trained so many rounds."""

        def seen(lines: list[dict[str, Any]]) -> bool:
            rounds = {
                line["round"]
                for line in lines
                if line["torch_world_size"] == world_size and line["step"] > after_step
            }
            return len(rounds) >= count

        self.wait_for(seen, f"{count} rounds of {world_size} ranks")

    def finish(self) -> Result:
        """Let the loop end at its next boundary."""
        (self.out / "stop").write_text("")
        self._thread.join(_PATIENCE_S)
        assert not self._thread.is_alive(), "the run does not end"
        if self.error is not None:
            raise self.error
        assert self.result is not None
        return self.result

    def newest_step(self) -> int:
        """The furthest step that any rank has begun."""
        return max((line["step"] for line in self.lines()), default=-1)

    def lines(self) -> list[dict[str, Any]]:
        """What the ranks wrote so far, each line once read."""
        for path in sorted(self.out.glob("*.jsonl")):
            with path.open() as stream:
                stream.seek(self._read_until.get(path, 0))
                text = stream.read()
            whole = text[: text.rfind("\n") + 1]  # a line may be half written
            self._read_until[path] = self._read_until.get(path, 0) + len(whole)
            self._lines += [json.loads(line) for line in whole.splitlines()]
        return self._lines
