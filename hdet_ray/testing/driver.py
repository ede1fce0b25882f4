"""Faults from outside: nodes that go and come, and what else a driver can do to a run.

A worker can't take its own node away. So a thread in the driver watches how far the run has come, in the
book that the workers' injector keeps, and does there what is due.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Protocol

from hdet_ray.exceptions import ConfigError
from hdet_ray.testing.book import Book
from hdet_ray.testing.faults import AddNode, Fault, Own, RemoveNode

_POLL_S = 0.05


class Nodes(Protocol):
    """Something that has nodes: a cluster of several raylets on one machine, a cloud, …."""

    def add(self, num_cpus: int) -> None:
        """A node more."""

    def remove(self, number: int, *, is_graceful: bool) -> None:
        """One less: the node of this number, modulo how many there are, in the order in which they came."""


class ClusterNodes:
    """The worker nodes of a `ray.cluster_utils.Cluster`: several raylets on this machine.

    Args:
        cluster: It; the head stays.
        **node_args: What `Cluster.add_node` is called with beside ``num_cpus``.
    """

    def __init__(self, cluster: Any, **node_args: Any) -> None:
        self._cluster = cluster
        self._node_args = node_args
        self._nodes = sorted(cluster.worker_nodes, key=_raylet_pid)  # a set, in no order of its own

    def __len__(self) -> int:
        return len(self._nodes)

    def add(self, num_cpus: int) -> None:
        """A node more, ready to take workers; in whichever thread."""
        with _handlers_left_alone():
            self._nodes.append(self._cluster.add_node(num_cpus=num_cpus, **self._node_args))

    def remove(self, number: int, *, is_graceful: bool) -> None:
        """One less.

        Raises:
            ConfigError: there is none.
        """
        if not self._nodes:
            raise ConfigError("there is no node left to remove; add one before, by AddNode or add()")
        node = self._nodes.pop(number % len(self._nodes))
        self._cluster.remove_node(node, allow_graceful=is_graceful)


def _raylet_pid(node: Any) -> int:
    """Grows from one node to the next that is started on a machine."""
    return int(node.all_processes["raylet"][0].process.pid)


@contextmanager
def _handlers_left_alone() -> Iterator[None]:
    """Each node that Ray starts sets a handler of SIGTERM for this process, which only its main thread may;
    elsewhere that of the nodes before it stays."""
    if threading.current_thread() is threading.main_thread():
        yield
        return
    utils: Any = importlib.import_module("ray._private.utils")
    set_handler = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = set_handler


class DriverFaults:
    """Does the faults of nodes, and your own ones, while a run trains.

        with DriverFaults(faults, folder, nodes=ClusterNodes(cluster)):
            trainer.fit()

    Args:
        faults: The same list as the workers' `FaultInjector` has, in the same order.
        folder: The same folder.
        nodes: For `RemoveNode` and `AddNode`.
        own: What to call for each `Own`, by its name.

    Raises:
        ConfigError: a fault that nothing here can do.
    """

    def __init__(
        self,
        faults: Iterable[Fault],
        folder: str | os.PathLike[str],
        *,
        nodes: Nodes | None = None,
        own: Mapping[str, Callable[[], object]] | None = None,
    ) -> None:
        self._nodes, self._own = nodes, dict(own or {})
        self._book = Book(folder)
        self._open = [
            (number, fault)
            for number, fault in enumerate(faults)
            if fault.is_of_driver and not self._book.has(number)
        ]
        for number, fault in self._open:
            self._require_possible(number, fault)
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._watch, daemon=True, name="hdet-driver-faults")

    def do_due(self) -> int:
        """Do what is due now, in the order of the list.

        Returns:
            How many faults that were.
        """
        at = self._book.progress()
        due = [] if at is None else [entry for entry in self._open if entry[1].is_due(*at)]
        done = 0
        for number, fault in due:
            self._open.remove((number, fault))
            step, round = at or (0, 0)
            if self._book.enter(number, fault, rank=None, num_ranks=None, step=step, round=round):
                self._do(fault)
                done += 1
        return done

    def __enter__(self) -> DriverFaults:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raises what went wrong in a fault of the driver, unless the block itself failed."""
        self._ended.set()
        self._thread.join()
        if self._error is not None and error is None:
            raise self._error

    def _watch(self) -> None:
        try:
            while not self._ended.wait(_POLL_S):
                self.do_due()
        except BaseException as error:  # whatever a function of the caller's raises is told at the end
            self._error = error

    def _do(self, fault: Fault) -> None:
        act = fault.act
        if isinstance(act, Own):
            self._own[act.name]()
        elif self._nodes is not None and isinstance(act, AddNode):
            self._nodes.add(act.num_cpus)
        elif self._nodes is not None and isinstance(act, RemoveNode):
            self._nodes.remove(fault.rank, is_graceful=act.is_graceful)

    def _require_possible(self, number: int, fault: Fault) -> None:
        act = fault.act
        if isinstance(act, Own):
            if act.name not in self._own:
                known = ", ".join(self._own) or "nothing"
                raise ConfigError(
                    f"fault {number} is own={act.name!r}, which own={{…}} lacks; it has {known}"
                )
        elif self._nodes is None:
            raise ConfigError(
                f"fault {number} is {act!r}, and nodes=None has none; give nodes=ClusterNodes(cluster)"
            )
