"""Fault injection: rehearse how a job of yours outlives what will happen to it.

A list of `Fault` says what happens, to whom and when; `draw_faults` draws one from a seed. In the workers
a `FaultInjector` makes them happen, once each, however often the group starts again; in the driver a
`DriverFaults` does those that no worker can do to itself: nodes that go and come. ``docs/testing.md`` shows
a whole rehearsal. Nothing in here is imported unless you do.
"""

from hdet_ray.testing.book import Happened, newest_progress, read_happened
from hdet_ray.testing.driver import ClusterNodes, DriverFaults, Nodes
from hdet_ray.testing.faults import (
    Act,
    AddNode,
    Fault,
    FillDisk,
    FlipBit,
    Kill,
    Own,
    RemoveNode,
    SetNan,
    SlowDown,
    Stop,
    draw_faults,
    faults_from_json,
    faults_to_json,
)
from hdet_ray.testing.injector import FaultInjector

__all__ = [
    "Act",
    "AddNode",
    "ClusterNodes",
    "DriverFaults",
    "Fault",
    "FaultInjector",
    "FillDisk",
    "FlipBit",
    "Happened",
    "Kill",
    "Nodes",
    "Own",
    "RemoveNode",
    "SetNan",
    "SlowDown",
    "Stop",
    "draw_faults",
    "faults_from_json",
    "faults_to_json",
    "newest_progress",
    "read_happened",
]
