"""Put-back: what a search round does to the weights is undone, bit for bit.

A snapshot holds one copy of weights, buffers and optimizer state, in memory that is allocated once. The
originals are written in place, so DDP's views, a compiled step's captured tensors and the optimizer's own
references stay what they were. Hyperparameters, the data's position and random states are no part of it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hdet_ray.exceptions import CheckpointError, ConfigError


class Snapshot:
    """One copy of what training changes.

    Args:
        tensors: Parameters and buffers; their copies lie on their own device.
        optimizer: Its ``state`` is copied, not its groups' hyperparameters. The copy lies on the host, so
            that an accelerator's memory holds one extra copy of the parameters and no more.
        grad_scaler: A ``torch.amp.GradScaler`` whose scale and growth count are copied too.
    """

    def __init__(self, tensors: Sequence[Tensor], optimizer: Optimizer, grad_scaler: Any = None) -> None:
        self._tensors = list(tensors)
        self._copies: list[Tensor] = []
        self._optimizer = optimizer
        self._state: dict[Any, Any] = {}
        self._grad_scaler = grad_scaler
        self._scaler_state: dict[str, Any] = {}
        self._is_taken = False

    @torch.no_grad()
    def take(self) -> None:
        """Copy the present state over the previous copy."""
        if not self._copies:
            self._copies = [torch.empty_like(tensor, requires_grad=False) for tensor in self._tensors]
        _copy_all(self._copies, self._tensors)
        self._state = _saved(self._optimizer.state, self._state)
        if self._grad_scaler is not None:
            self._scaler_state = self._grad_scaler.state_dict()
        self._is_taken = True

    def restore(self) -> None:
        """Put the copied state back.

        Tensors are written in place wherever they still exist. Optimizer entries that did not exist at
        ``take`` are removed, those that have gone are made anew.

        Raises:
            ConfigError: Nothing was taken yet.
        """
        self.restore_weights()
        with torch.no_grad():
            _restore_mapping(self._state, self._optimizer.state)
        if self._grad_scaler is not None and self._scaler_state:
            self._grad_scaler.load_state_dict(self._scaler_state)

    @torch.no_grad()
    def restore_weights(self) -> None:
        """Put back parameters and buffers alone.

        Raises:
            ConfigError: Nothing was taken yet.
        """
        if not self._is_taken:
            raise ConfigError("there is no snapshot to restore; call take() first")
        _copy_all(self._tensors, self._copies)

    def release(self) -> None:
        """Give the memory of the copy back; there is nothing to restore until the next ``take``."""
        self._copies, self._state, self._scaler_state = [], {}, {}
        self._is_taken = False

    def give_up(self, count: int) -> list[Tensor]:
        """The memory of the first copies, free for another use until the next ``take`` or ``release``.

        There is nothing to restore until then.
        """
        self._is_taken = False
        return self._copies[:count]

    def holds(self, tensors: Sequence[Tensor]) -> bool:
        """The first of the copies are equal to these tensors, one by one."""
        return all(torch.equal(copied, t) for copied, t in zip(self._copies, tensors, strict=False))

    def extra_bytes(self) -> int:
        """Bytes that the copies take: parameters and buffers where they lie, optimizer state on the host."""
        copies = [*self._copies, *(tensor for _, tensor in _named_tensors(_plain(self._state)))]
        return sum(tensor.numel() * tensor.element_size() for tensor in copies)

    def state_dict(self) -> dict[str, Any]:
        """The snapshot for ``torch.save``, without copying: optimizer entries go by their parameter's index.

        Raises:
            ConfigError: Nothing was taken yet.
        """
        if not self._is_taken:
            raise ConfigError("there is no snapshot to save; call take() first")
        index = {id(parameter): i for i, parameter in enumerate(_parameters(self._optimizer))}
        return {
            "tensors": list(self._copies),
            "state": {index.get(id(key), key): _plain(value) for key, value in self._state.items()},
            "grad_scaler": dict(self._scaler_state),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a saved snapshot for this one; the model and the optimizer are left alone.

        Raises:
            CheckpointError: It is of tensors of other number or shapes.
        """
        saved = state["tensors"]
        if [list(tensor.shape) for tensor in saved] != [list(tensor.shape) for tensor in self._tensors]:
            raise CheckpointError(
                f"the saved snapshot holds {len(saved)} tensors of other number or shapes than the "
                f"{len(self._tensors)} parameters and buffers here; build the model that was saved"
            )
        if not self._copies:
            self._copies = [torch.empty_like(tensor, requires_grad=False) for tensor in self._tensors]
        _copy_all(self._copies, saved)
        parameters = dict(enumerate(_parameters(self._optimizer)))
        self._state = {parameters.get(key, key): _saved(value) for key, value in state["state"].items()}
        self._scaler_state = dict(state["grad_scaler"])
        self._is_taken = True


def optimizer_tensors(optimizer: Optimizer) -> tuple[list[Tensor], list[Tensor]]:
    """An optimizer's state tensors: those that a mean makes sense of, and those that count.

    The order is the same on every rank that trains the same model: by parameter group, then by parameter,
    then by the entry's name.

    Returns:
        ``(averaged, counted)``: floating tensors (moments, momentum buffers), and step counts and integers.
    """
    averaged: list[Tensor] = []
    counted: list[Tensor] = []
    in_groups = _parameters(optimizer)
    known = {id(parameter) for parameter in in_groups}
    others = sorted((key for key in optimizer.state if id(key) not in known), key=str)
    for owner in (*in_groups, *others):
        if owner not in optimizer.state:  # A defaultdict: looking it up would create it.
            continue
        for name, tensor in _named_tensors(optimizer.state[owner]):
            is_counter = name == "step" or not (tensor.is_floating_point() or tensor.is_complex())
            (counted if is_counter else averaged).append(tensor)
    return averaged, counted


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _copy_all(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    if targets:
        torch._foreach_copy_([target.detach() for target in targets], [source.detach() for source in sources])


@dataclass(frozen=True, slots=True, eq=False)
class _SavedTensor:
    copy: Tensor
    device: torch.device
    """Where the original lay."""


def _saved(value: Any, previous: Any = None) -> Any:
    """Copy an entry of optimizer state; a tensor into the former copy where the shape is the same."""
    if isinstance(value, Tensor):
        memory = previous.copy if isinstance(previous, _SavedTensor) else None
        if memory is None or (memory.shape, memory.dtype) != (value.shape, value.dtype):
            # Pinned: a copy from pageable memory takes several times as long.
            memory = torch.empty(value.shape, dtype=value.dtype, device="cpu", pin_memory=value.is_cuda)
        memory.copy_(value.detach())
        return _SavedTensor(memory, value.device)
    if isinstance(value, Mapping):
        known = previous if isinstance(previous, dict) else {}
        return {key: _saved(item, known.get(key)) for key, item in value.items()}
    if isinstance(value, list):
        former = previous if isinstance(previous, list) else []
        return [_saved(item, old) for item, old in zip_longest(value, former[: len(value)])]
    return copy.deepcopy(value)


def _restored(saved: Any, live: Any) -> Any:
    """What belongs in the place of ``live``: itself, overwritten, where it is of the same kind."""
    if isinstance(saved, _SavedTensor):
        if isinstance(live, Tensor) and (live.shape, live.dtype) == (saved.copy.shape, saved.copy.dtype):
            live.detach().copy_(saved.copy)
            return live
        return saved.copy.to(saved.device, copy=True)
    if isinstance(saved, dict):
        mapping = live if isinstance(live, MutableMapping) else {}
        _restore_mapping(saved, mapping)
        return mapping
    if isinstance(saved, list):
        items = live if isinstance(live, list) else []
        items[:] = [_restored(item, old) for item, old in zip_longest(saved, items[: len(saved)])]
        return items
    return copy.deepcopy(saved)


def _restore_mapping(saved: Mapping[Any, Any], live: MutableMapping[Any, Any]) -> None:
    for key in [key for key in live if key not in saved]:
        del live[key]
    for key, value in saved.items():
        live[key] = _restored(value, live.get(key))


def _plain(saved: Any) -> Any:
    if isinstance(saved, _SavedTensor):
        return saved.copy
    if isinstance(saved, dict):
        return {key: _plain(value) for key, value in saved.items()}
    if isinstance(saved, list):
        return [_plain(item) for item in saved]
    return saved


def _named_tensors(value: Any, name: Any = "") -> Iterator[tuple[Any, Tensor]]:
    """The tensors in nested containers with the name under which each stands, in sorted order of names."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from _named_tensors(value[key], key)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _named_tensors(item, name)
