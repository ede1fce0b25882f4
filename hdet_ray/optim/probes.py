"""Probes: the loss of the current weights on samples that every replica knows.

The user's function is called under controlled conditions (eval mode, no gradients, a random state of its
own) and leaves no trace: training goes on as if it had not been called.
"""

from __future__ import annotations

import contextlib
import hashlib
import numbers
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hdet_ray.exceptions import ConfigError, ProbeError
from hdet_ray.optim.gradient_sync import buffer_switch


class Probe:
    """Measures a module on numbered batches of probe samples.

    Args:
        fn: ``fn(k)`` returns the loss of the module's current weights on probe batch number ``k``, a number
            or a tensor of one element: the same samples for the same ``k`` on every rank.
        module: The module whose weights ``fn`` measures.
        seed: What ``fn`` draws at random is drawn from ``(seed, k)``, alike on every rank.

    Raises:
        ConfigError: ``fn`` can't be called.
    """

    def __init__(self, fn: Callable[[int], object], module: nn.Module, *, seed: int) -> None:
        if not callable(fn):
            raise ConfigError(f"probe={fn!r} can't be called; pass a function of the probe batch's number k")
        self._fn = fn
        self._module = module
        self._seed = seed

    def measure(self, first: int, count: int) -> float:
        """Return the mean of ``fn(k)`` for ``k = first … first + count - 1``; it may be NaN or infinite.

        Raises:
            ConfigError: ``first`` is negative or ``count`` not positive.
            ProbeError: ``fn`` raised, returned something else than one number, or changed weights or buffers.
        """
        if first < 0 or count < 1:
            raise ConfigError(
                f"first={first}, count={count} names no probe batches; use first >= 0, count >= 1"
            )
        before = _Fingerprint.of(self._module)
        with (
            _eval_mode(self._module),
            _silent_ddp(self._module),
            _forked_random_state(self._module),
            torch.no_grad(),
        ):
            losses = [self._call(k) for k in range(first, first + count)]
            # Read only now: one wait for the device, not one for each call.
            total = sum(float(loss) for loss in losses)
        if changed := before.changed_since(self._module):
            raise ProbeError(
                f"the probe changed {changed}, but a probe only looks: leave out updates of weights and "
                f"buffers, or work on a copy of the module"
            )
        return total / count

    def _call(self, k: int) -> Any:
        _seed_all(self._module, self._seed, k)
        try:
            value = self._fn(k)
        except Exception as error:  # Whatever the user's function raises, the other ranks must hear of.
            raise ProbeError(f"probe({k}) raised {type(error).__name__}: {error}") from error
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        is_scalar = isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex()
        if not (is_number or is_scalar):
            shape = f" of shape {list(value.shape)}" if isinstance(value, Tensor) else ""
            raise ProbeError(
                f"probe({k}) returned a {type(value).__name__}{shape}; return one number, the mean loss over "
                f"the batch (loss.mean() or criterion(..., reduction='mean'))"
            )
        return value


@dataclass(frozen=True, slots=True, eq=False)
class _Fingerprint:
    """What tells whether a module's tensors were written to."""

    versions: dict[str, tuple[int, int]]
    checksums: dict[str, int]

    @classmethod
    def of(cls, module: nn.Module) -> _Fingerprint:
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        by_device: dict[torch.device, dict[str, Tensor]] = defaultdict(dict)
        for name, tensor in tensors.items():
            by_device[tensor.device][name] = _checksum(tensor)
        return cls(
            versions={name: (id(tensor), tensor._version) for name, tensor in tensors.items()},
            checksums={
                name: number
                for sums in by_device.values()  # One wait for each device, not for each tensor.
                for name, number in zip(sums, torch.stack(list(sums.values())).tolist(), strict=True)
            },
        )

    def changed_since(self, module: nn.Module) -> str:
        """The names of the tensors that were written to or replaced; empty if none was."""
        now = _Fingerprint.of(module)
        # Writes through `.data` leave the version counter alone; the checksums show them.
        changed = [
            name
            for name in sorted(self.versions.keys() | now.versions.keys())
            if self.versions.get(name) != now.versions.get(name)
            or self.checksums.get(name) != now.checksums.get(name)
        ]
        return ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")


@torch.no_grad()
def _checksum(tensor: Tensor) -> Tensor:
    """The sum of the tensor's bits taken as integers: exact, and the same for the same NaN."""
    dense = tensor.detach()
    if dense.is_complex():
        dense = torch.view_as_real(dense)
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dense.element_size()]
    return dense.view(bits).sum(dtype=torch.int64)


@contextlib.contextmanager
def _eval_mode(module: nn.Module) -> Iterator[None]:
    flags = [(submodule, submodule.training) for submodule in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for submodule, is_training in flags:
            submodule.training = is_training


@contextlib.contextmanager
def _silent_ddp(module: nn.Module) -> Iterator[None]:
    """Keep DDP from broadcasting buffers in a probe, and from taking it for a training forward pass."""
    wrappers = [layer for layer in module.modules() if isinstance(layer, DistributedDataParallel)]
    before = [
        (layer, getattr(layer, buffer_switch(layer)), layer.require_forward_param_sync) for layer in wrappers
    ]
    for layer in wrappers:
        setattr(layer, buffer_switch(layer), False)
    try:
        yield
    finally:
        for layer, syncs_buffers, is_due in before:
            setattr(layer, buffer_switch(layer), syncs_buffers)
            layer.require_forward_param_sync = is_due


@contextlib.contextmanager
def _forked_random_state(module: nn.Module) -> Iterator[None]:
    python_state = random.getstate()
    numpy: Any = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy else None
    with contextlib.ExitStack() as forks:
        forks.enter_context(torch.random.fork_rng(devices=[]))
        for device in _accelerators(module):
            forks.enter_context(torch.random.fork_rng(devices=[device.index], device_type=device.type))
        try:
            yield
        finally:
            random.setstate(python_state)
            if numpy:
                numpy.random.set_state(numpy_state)


def _seed_all(module: nn.Module, seed: int, k: int) -> None:
    digest = hashlib.blake2b(f"{seed}:{k}".encode(), digest_size=8).digest()
    drawn = int.from_bytes(digest) >> 1  # Below 2^63, which every generator takes.
    # Not torch.manual_seed: that seeds devices whose state is not forked here.
    torch.default_generator.manual_seed(drawn)
    for device in _accelerators(module):
        accelerator = torch.get_device_module(device)
        with accelerator.device(device.index):
            accelerator.manual_seed(drawn)
    random.seed(drawn)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(drawn % 2**32)


def _accelerators(module: nn.Module) -> list[torch.device]:
    """The devices other than the host on which the module has parameters or buffers, in a fixed order."""
    devices = {tensor.device for tensor in (*module.parameters(), *module.buffers())}
    return sorted((d for d in devices if d.type not in ("cpu", "meta")), key=str)
