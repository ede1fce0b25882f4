"""A small Ray cluster for the tests of a module: its own ports, its own folder, gone afterwards.

Not for the whole session: other modules of this folder start clusters of several nodes. Those run in a
process each (`make test-all`).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Eight logical CPUs, whatever the machine has: workers may share cores."""
    import ray

    folder = tempfile.mkdtemp(prefix="hr-")  # short: Ray puts sockets below it
    before = dict(os.environ)
    os.environ.update(
        {
            # A report is taken at a health check: the default of 2 s would be most of a test's time.
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
            "RAY_USAGE_STATS_ENABLED": "0",
            # Workers find the package and the tests' modules where pytest found them.
            "PYTHONPATH": os.pathsep.join([str(ROOT), before.get("PYTHONPATH", "")]).rstrip(os.pathsep),
        }
    )
    ray.init(
        address="local",
        num_cpus=8,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=200 << 20,
        _temp_dir=folder,
    )
    try:
        yield
    finally:
        ray.shutdown()
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(folder, ignore_errors=True)
