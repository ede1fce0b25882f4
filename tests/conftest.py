"""What every test starts from: one thread a process, property tests that draw the same examples each time."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# Read by torch when it is imported, here and in every process that a test starts: the order of a sum,
# hence its last bit, follows the number of threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")
