"""Faults as values: what happens, to which rank, at which step or round. Drawn from a seed, or written down.

The same seed draws the same faults on every machine, so that a run which went wrong can be had again.
Standard library only.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from hdet_ray.core.draws import permutation, words
from hdet_ray.exceptions import ConfigError

_PURPOSE = "faults"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """The worker kills itself by SIGKILL: no word, no cleaning up."""

    kind: ClassVar[str] = "kill"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """The worker stops itself by SIGSTOP: it is alive, holds its connections, and answers nobody."""

    kind: ClassVar[str] = "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowDown:
    """Each step of the worker takes longer, for a while."""

    kind: ClassVar[str] = "slow_down"
    pause_s: float
    """Seconds that are added to a step."""
    for_steps: int = 1

    def __post_init__(self) -> None:
        if not (_is_number(self.pause_s) and math.isfinite(self.pause_s) and self.pause_s > 0):
            raise ConfigError(f"pause_s={self.pause_s!r} must be a finite number of seconds above 0")
        _check_whole("for_steps", self.for_steps, 1, "1 slows a single step")


@dataclass(frozen=True, slots=True, kw_only=True)
class SetNan:
    """NaN into this rank's own gradient, or into its parameters."""

    kind: ClassVar[str] = "nan"
    into: Literal["gradient", "parameter"] = "gradient"
    """``gradient``: the next backward pass gives NaN for one parameter, before anything is shared.
    ``parameter``: one parameter is NaN, so the step's loss is too."""

    def __post_init__(self) -> None:
        if self.into not in ("gradient", "parameter"):
            raise ConfigError(f"into={self.into!r} is unknown; use 'gradient' or 'parameter'")


@dataclass(frozen=True, slots=True, kw_only=True)
class FlipBit:
    """One bit of one parameter turns over on this rank alone, as in a memory that fails silently."""

    kind: ClassVar[str] = "flip_bit"
    parameter: str | None = None
    """Its name in the model; None: the first."""
    element: int = 0
    """Of the flattened parameter."""
    bit: int = 0
    """0 is the lowest: the smallest change that there is."""

    def __post_init__(self) -> None:
        _check_whole("element", self.element, 0, "0 is the first")
        _check_whole("bit", self.bit, 0, "0 is the lowest")
        if self.bit > 63:
            raise ConfigError(f"bit={self.bit} is in no number of a model; the widest have 64, from 0 to 63")


@dataclass(frozen=True, slots=True, kw_only=True)
class FillDisk:
    """The next checkpoint that this rank writes finds no space left, after half of its first file.

    Rank 0 writes them, unless your loop reports checkpoints of its own on another rank.
    """

    kind: ClassVar[str] = "fill_disk"
    where: Literal["storage", "staging"] = "storage"
    """``storage``: the run's storage, in the upload. ``staging``: the node's own disk, in the boundary."""

    def __post_init__(self) -> None:
        if self.where not in ("storage", "staging"):
            raise ConfigError(f"where={self.where!r} is unknown; use 'storage' or 'staging'")


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveNode:
    """A node goes, and all workers on it; done from the driver (`DriverFaults`). The fault's ``rank`` counts
    nodes here, in the order in which they came."""

    kind: ClassVar[str] = "remove_node"
    is_graceful: bool = False
    """By SIGTERM, as a machine that shuts down; else by SIGKILL, as one that loses power."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AddNode:
    """A node comes; done from the driver (`DriverFaults`)."""

    kind: ClassVar[str] = "add_node"
    num_cpus: int = 1

    def __post_init__(self) -> None:
        _check_whole("num_cpus", self.num_cpus, 1, "a node without CPUs takes no worker")


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """Something of your own, done from the driver by the function that `DriverFaults` has for its name."""

    kind: ClassVar[str] = "own"
    name: str

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("name='' names no function; use a key of DriverFaults(own={…})")


Act = Kill | Stop | SlowDown | SetNan | FlipBit | FillDisk | RemoveNode | AddNode | Own

_ACTS: dict[str, type[Any]] = {
    act.kind: act for act in (Kill, Stop, SlowDown, SetNan, FlipBit, FillDisk, RemoveNode, AddNode, Own)
}
DRIVER_ACTS = (RemoveNode, AddNode, Own)
"""What no worker can do to itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that happens, once in the run.

    Raises:
        ConfigError: neither or both of ``at_step`` and ``at_round``, or a number below 0.
    """

    act: Act
    rank: int = 0
    """Whom it happens to, modulo the ranks that there are then: a run that has shrunk is not spared."""
    at_step: int | None = None
    """Before the first step of the loop from this one on."""
    at_round: int | None = None
    """Before the first step of the first round from this one on."""

    def __post_init__(self) -> None:
        if not isinstance(self.act, Act):
            raise ConfigError(f"act={self.act!r} is no fault; use one of {', '.join(_names())}")
        if (self.at_step is None) == (self.at_round is None):
            raise ConfigError(
                f"at_step={self.at_step} and at_round={self.at_round}: give exactly one of them"
            )
        _check_whole("rank", self.rank, 0, "0 is the first")
        for name in ("at_step", "at_round"):
            if getattr(self, name) is not None:
                _check_whole(name, getattr(self, name), 0, "0 is the first")

    @property
    def is_of_driver(self) -> bool:
        """It is done from the driver, not by a worker."""
        return isinstance(self.act, DRIVER_ACTS)

    def is_due(self, step: int, round: int) -> bool:
        """It is time."""
        return step >= self.at_step if self.at_step is not None else round >= (self.at_round or 0)


def draw_faults(
    seed: int, counts: Mapping[Act, int], *, steps: range, num_ranks: int = 1
) -> tuple[Fault, ...]:
    """Draw faults at random: so many of each kind, spread over a range of steps.

    The range is cut into as many equal parts as there are faults. Each part gets one, at a step of its own,
    so that they come apart from each other and yet anywhere.

    Args:
        seed: The same seed and arguments draw the same faults, on every machine.
        counts: How many of each.
        steps: Where they may come; a range with step 1.
        num_ranks: Ranks to choose from.

    Returns:
        The faults in the order of their steps.

    Raises:
        ConfigError: a count below 0, fewer steps than faults, or ``num_ranks`` below 1.
    """
    _check_whole("num_ranks", num_ranks, 1, "1 harms rank 0 alone")
    for act, count in counts.items():
        _check_whole(f"counts[{act!r}]", count, 0, "0 draws none of them")
    acts = [act for act, count in counts.items() for _ in range(count)]
    if steps.step != 1 or len(steps) < len(acts):
        raise ConfigError(
            f"steps={steps!r} has no step of its own for each of {len(acts)} faults; use a range with step 1 "
            f"and at least {len(acts)} steps"
        )
    order = permutation(len(acts), words(seed, 0, f"{_PURPOSE}/order"))
    faults = []
    for number, place in enumerate(order):
        first = steps.start + number * len(steps) // len(acts)
        last = steps.start + (number + 1) * len(steps) // len(acts) - 1
        draw = words(seed, number, f"{_PURPOSE}/one")
        at_step = first + next(draw) % (last - first + 1)
        faults.append(Fault(act=acts[place], rank=next(draw) % num_ranks, at_step=at_step))
    return tuple(faults)


def faults_to_json(faults: Iterable[Fault]) -> list[dict[str, Any]]:
    """Plain dictionaries, for a job's ``config``: ``{"kind": "nan", "into": "gradient", "rank": 1,
    "at_step": 40}``."""
    return [_to_json(fault) for fault in faults]


def faults_from_json(items: Sequence[Mapping[str, Any]]) -> tuple[Fault, ...]:
    """The faults that dictionaries name.

    Raises:
        ConfigError: an unknown kind or key, or a value that can't be.
    """
    return tuple(_from_json(item) for item in items)


def _to_json(fault: Fault) -> dict[str, Any]:
    when = {"at_step": fault.at_step, "at_round": fault.at_round}
    return {
        "kind": fault.act.kind,
        **dataclasses.asdict(fault.act),
        "rank": fault.rank,
        **{name: value for name, value in when.items() if value is not None},
    }


def _from_json(item: Mapping[str, Any]) -> Fault:
    fields = dict(item)
    kind = fields.pop("kind", None)
    if kind not in _ACTS:
        raise ConfigError(f"kind={kind!r} is unknown; use one of {', '.join(_ACTS)}")
    where = {name: fields.pop(name) for name in ("rank", "at_step", "at_round") if name in fields}
    try:
        return Fault(act=_ACTS[kind](**fields), **where)
    except TypeError as error:
        known = [field.name for field in dataclasses.fields(_ACTS[kind])]
        raise ConfigError(
            f"a fault of kind {kind!r} can't be read from {dict(item)!r} ({error}); beside rank and at_step "
            f"or at_round it has {', '.join(known) or 'nothing'}"
        ) from error


def _names() -> list[str]:
    return [act.__name__ for act in _ACTS.values()]


def _check_whole(name: str, value: object, minimum: int, remedy: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ConfigError(f"{name}={value!r} must be a whole number of at least {minimum}; {remedy}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
