"""What each fault does to the worker that it happens to. What can be done for real is not pretended."""

from __future__ import annotations

import errno
import importlib
import os
import signal
from collections.abc import Callable, Mapping
from functools import singledispatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hdet_ray.exceptions import ConfigError
from hdet_ray.optim.stepping import ReplicaScheduler
from hdet_ray.testing.faults import FillDisk, FlipBit, Kill, SetNan, Stop
from hdet_ray.train.manifest import MANIFEST_FILE

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integer type of as many bytes as a number has: bits are turned over in it."""


@singledispatch
def perform(act: object, scheduler: ReplicaScheduler) -> None:
    """Do it, in this process.

    Raises:
        ConfigError: it can't be done here.
    """
    raise ConfigError(f"{act!r} is nothing that a worker can do to itself; give it to DriverFaults")


@perform.register
def _kill(act: Kill, scheduler: ReplicaScheduler) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@perform.register
def _stop(act: Stop, scheduler: ReplicaScheduler) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


@perform.register
@torch.no_grad()
def _set_nan(act: SetNan, scheduler: ReplicaScheduler) -> None:
    parameter = next(iter(_parameters(scheduler).values()))
    if act.into == "parameter":
        parameter.view(-1)[0] = torch.nan
        return

    # A hook of the tensor itself: it sees this rank's own gradient, before anybody else's is added to it.
    def spoil(gradient: Tensor) -> Tensor:
        hook.remove()
        return torch.full_like(gradient, torch.nan)

    hook = parameter.register_hook(spoil)  # type: ignore[no-untyped-call]


@perform.register
@torch.no_grad()
def _flip_bit(act: FlipBit, scheduler: ReplicaScheduler) -> None:
    parameters = _parameters(scheduler)
    name = next(iter(parameters)) if act.parameter is None else act.parameter
    if name not in parameters:
        raise ConfigError(f"parameter={name!r} is not trained here; use one of {', '.join(parameters)}")
    parameter = parameters[name]
    num_bits = 8 * parameter.element_size()
    if act.element >= parameter.numel() or act.bit >= num_bits:
        raise ConfigError(
            f"element={act.element} bit={act.bit}: {name!r} has {parameter.numel()} elements of {num_bits} "
            "bits; both count from 0"
        )
    number = parameter.detach().view(-1)[act.element : act.element + 1]
    bits = number.view(_INTEGERS[parameter.element_size()])
    # The highest bit is the sign: as a Python integer it would be out of the type's range.
    mask = (1 << act.bit) - (1 << num_bits if act.bit == num_bits - 1 and num_bits > 8 else 0)
    bits.bitwise_xor_(torch.tensor(mask, dtype=bits.dtype, device=bits.device))


@perform.register
def _fill_disk(act: FillDisk, scheduler: ReplicaScheduler) -> None:
    """Filling a disk for real would harm everything else on it, so the error is raised by us, at the one
    function that writes; what was written until then is really there, as on a full disk."""
    if act.where == "staging":
        _once_in("hdet_ray.train.attach", "save", _half_saved)
    else:
        _once_in("hdet_ray.train.reports", "upload", _half_uploaded)


def _half_saved(directory: str | os.PathLike[str], **_: Any) -> None:
    place = Path(directory, "model.safetensors")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(b"half of a file")
    raise _no_space(str(place))


def _half_uploaded(local_dir: str | os.PathLike[str], filesystem: Any, path: str) -> None:
    filesystem.create_dir(path, recursive=True)
    source = min(each for each in Path(local_dir).iterdir() if each.is_file() and each.name != MANIFEST_FILE)
    content = source.read_bytes()
    place = f"{path}/{source.name}"
    with filesystem.open_output_stream(place) as stream:
        stream.write(content[: len(content) // 2])
    raise _no_space(place)


def _no_space(place: str) -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), place)


def _once_in(module_name: str, name: str, failing: Callable[..., None]) -> None:
    """The next call of a module's function is the failing one's; then all is as before."""
    module: Any = importlib.import_module(module_name)
    before = getattr(module, name)

    def once(*args: Any, **options: Any) -> None:
        setattr(module, name, before)
        failing(*args, **options)

    setattr(module, name, once)


def _parameters(scheduler: ReplicaScheduler) -> Mapping[str, Tensor]:
    """The trained parameters, by the name in the bare model where the scheduler knows one."""
    trained = [p for group in scheduler.optimizer.param_groups for p in group["params"]]
    if scheduler.model is None:
        return {str(i): parameter for i, parameter in enumerate(trained)}
    known = {id(p): name for name, p in scheduler.model.named_parameters()}
    names = [known.get(id(p), str(i)).removeprefix("module.") for i, p in enumerate(trained)]
    return dict(zip(names, trained, strict=True))
