"""A Ray of its own for one command: started, used and gone, whatever happens in between.

The fit runs in a thread and the display in the main one, so that Ctrl-C reaches the display at once and
everything is shut down on the way out. Ray's folder is the command's own, with a short path (sockets in it
may have no more than 107 characters).
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

# Read by Ray when it is imported, and handed on to its processes.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray

from hdet_ray.train.failures import own_error

_SHORT_FOLDER = "/tmp"
"""Not the user's TMPDIR: that one may be long."""
_POLL_S = 0.2
_EXIT_TERMINATED = 143


@contextmanager
def local_ray(num_workers: int) -> Iterator[Path]:
    """Ray on this machine for the time of the block, with a CPU for each worker and one more.

    Logical CPUs: more than the machine has only means that workers take turns.

    Yields:
        Ray's folder, for whatever else is to be gone afterwards.
    """
    folder = Path(tempfile.mkdtemp(prefix="hdet-", dir=_SHORT_FOLDER))
    before = signal.signal(signal.SIGTERM, _leave)
    own_tmpdir = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(folder)  # of the workers: what a killed one leaves goes with the rest
    try:
        ray.init(
            address="local",
            num_cpus=num_workers + 1,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(folder),
        )
        signal.signal(signal.SIGTERM, _leave)  # Ray has put its own there, which aborts.
        yield folder
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
        signal.signal(signal.SIGTERM, before)
        if own_tmpdir is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = own_tmpdir


def fit(trainer: Any, while_running: Callable[[], None]) -> Any:
    """Run a trainer to its end.

    Args:
        trainer: A Ray trainer.
        while_running: Called a few times a second, and once after the end.

    Returns:
        Ray's ``Result``.

    Raises:
        HDETError: a worker raised it; as it was raised there.
    """
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(trainer.fit())
        except BaseException as error:  # raised again below, in the thread that waits
            outcome.append(error)

    thread = threading.Thread(target=run, name="fit", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_POLL_S)
        while_running()
    (result,) = outcome
    if isinstance(result, BaseException):
        raise own_error(result) or result
    return result


def _leave(_: int, __: FrameType | None) -> None:
    """SIGTERM unwinds as an exception does; by itself Python would end without cleaning up."""
    sys.exit(_EXIT_TERMINATED)
