"""Checkpoints of a run: one folder a boundary, written by one rank, read by any number of them.

At a boundary all replicas hold the same tensors, so one rank writes them for all. What differs by
rank (random state, sampler position) is a list in the order of ranks; a rank that the list doesn't
reach draws its random state from ``(seed, rank)``. Nothing in the folder is scaled by the world size.

    model.safetensors   parameters and buffers of the bare module (loadable without this library)
    optimizer.pt        the optimizer's state_dict
    schedule.json       the scheduler's state_dict
    schedule.pt         those of its entries that JSON would change (a base scheduler's), where there are any
    ranks.pt            per rank: random state, sampler position, and moments where replicas keep their own
    extra.pt            state_dicts of further objects (a GradScaler, an EMA), where there are any
    manifest.json       written last: version, round, step, sizes and digests, layout of the groups
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hdet_ray.exceptions import CheckpointError
from hdet_ray.train.manifest import (
    MANIFEST_FILE,
    MANIFEST_VERSION,
    GroupLayout,
    Manifest,
    OpenFile,
    describe_files,
    verify,
)
from hdet_ray.train.rng import restore_rng, seed_rng

WEIGHTS_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.pt"
SCHEDULE_FILE = "schedule.json"
SCHEDULE_REST_FILE = "schedule.pt"
RANKS_FILE = "ranks.pt"
EXTRA_FILE = "extra.pt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A verified checkpoint in host memory."""

    where: str
    manifest: Manifest
    weights: Mapping[str, Tensor]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    ranks: tuple[dict[str, Any], ...]
    extra: Mapping[str, Any]


def save(
    directory: str | os.PathLike[str],
    *,
    model: nn.Module,
    optimizer: Optimizer,
    schedule: Mapping[str, Any],
    ranks: Sequence[Mapping[str, Any]],
    round: int,
    step: int,
    extra: Mapping[str, Any] | None = None,
    attempt: int = 0,
) -> Manifest:
    """Write one checkpoint. Call it on one rank, at a boundary.

    Args:
        directory: Folder to write to; made where missing. What a former save left there is replaced.
        model: The module, wrapped in DDP or compiled or neither; the bare module's names are saved.
        optimizer: Its whole state is saved.
        schedule: The scheduler's state_dict.
        ranks: One dict a rank, in the order of ranks: ``rng``, and what the run has of ``sampler`` and
            ``optimizer``, the state of one whose moments differ between ranks.
        round: The round that starts after this boundary.
        step: Calls of the scheduler's ``step`` so far.
        extra: State_dicts of further objects by name.
        attempt: Which start of a job's run writes it.

    Returns:
        The manifest that was written.

    Raises:
        CheckpointError: The model's state_dict holds something that is no tensor, or another one something
            that torch would not load: then no restart could go on from here.
    """
    _require_loadable(optimizer, ranks, extra or {})
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    # First of all: from here on the folder is unfinished, whatever was in it.
    (folder / MANIFEST_FILE).unlink(missing_ok=True)

    safetensors.torch.save_file(_plain_weights(model), folder / WEIGHTS_FILE)
    torch.save(optimizer.state_dict(), folder / OPTIMIZER_FILE)
    plain = {key: value for key, value in schedule.items() if _survives_json(value)}
    (folder / SCHEDULE_FILE).write_text(json.dumps(plain, indent=1), encoding="utf-8")
    torch.save([dict(state) for state in ranks], folder / RANKS_FILE)
    names = [WEIGHTS_FILE, OPTIMIZER_FILE, SCHEDULE_FILE, RANKS_FILE]
    rest = {key: value for key, value in schedule.items() if key not in plain}
    for name, content in ((SCHEDULE_REST_FILE, rest), (EXTRA_FILE, dict(extra or {}))):
        if content:
            torch.save(content, folder / name)
            names.append(name)

    manifest = Manifest(
        version=MANIFEST_VERSION,
        round=round,
        step=step,
        world_size=len(ranks),
        files=describe_files(folder, names),
        groups=group_layouts(optimizer),
        attempt=attempt,
    )
    unfinished = folder / f"{MANIFEST_FILE}.part"
    unfinished.write_text(manifest.to_json(), encoding="utf-8")
    unfinished.replace(folder / MANIFEST_FILE)
    return manifest


def load(directory: str | os.PathLike[str]) -> Loaded:
    """Read a checkpoint from a local folder and verify all of it.

    Raises:
        CheckpointError: Unfinished, truncated, damaged, or written by a newer version.
    """
    folder = Path(directory)
    manifest = verify(local_opener(folder), str(folder))
    try:
        return Loaded(
            where=str(folder),
            manifest=manifest,
            weights=safetensors.torch.load_file(folder / WEIGHTS_FILE, device="cpu"),
            optimizer=_load_tensors(folder / OPTIMIZER_FILE),
            schedule=json.loads((folder / SCHEDULE_FILE).read_text(encoding="utf-8"))
            | (_load_tensors(folder / SCHEDULE_REST_FILE) if SCHEDULE_REST_FILE in manifest.files else {}),
            ranks=tuple(_load_tensors(folder / RANKS_FILE)),
            extra=_load_tensors(folder / EXTRA_FILE) if EXTRA_FILE in manifest.files else {},
        )
    except (OSError, ValueError, RuntimeError, pickle.UnpicklingError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{folder} can't be loaded ({error}); use the checkpoint before it") from error


def restore(
    loaded: Loaded, model: nn.Module, optimizer: Optimizer, *, extra: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Put what all ranks share back: weights, buffers, the optimizer's state, further objects.

    Everything is compared before anything is changed. The optimizer's hyperparameters come back as
    the writing rank had them; the scheduler puts this replica's own ones over them when its state is
    loaded, so load that next.

    Args:
        loaded: A checkpoint of any world size.
        model: The module, wrapped or not.
        optimizer: Over the same parameters in the same groups.
        extra: Objects with ``load_state_dict``, by the names under which they were saved.

    Returns:
        The scheduler's state_dict.

    Raises:
        CheckpointError: Other tensors, other groups, or an object in ``extra`` that was not saved.
    """
    bare = unwrap(model)
    _require_same_weights(loaded, bare)
    _require_same_groups(loaded, optimizer)
    for name in extra or {}:
        if name not in loaded.extra:
            raise CheckpointError(
                f"{loaded.where} holds no state for extra={name!r} (it has {sorted(loaded.extra)}); "
                "pass the objects that the writing run passed"
            )

    bare.load_state_dict(dict(loaded.weights))
    _load_optimizer(optimizer, loaded.optimizer)
    for name, target in (extra or {}).items():
        target.load_state_dict(loaded.extra[name])
    return loaded.schedule


def restore_rank(
    loaded: Loaded,
    rank: int,
    optimizer: Optimizer,
    *,
    world_size: int,
    seed: int,
    sampler: Any = None,
) -> None:
    """Put back what is this rank's own: random state, sampler position, moments. Call it last.

    Args:
        loaded: A checkpoint of any world size.
        rank: This rank.
        optimizer: Gets this rank's own state, where ranks had their own and are as many as then.
        world_size: Ranks now. Where it is not the saved one, every rank's sampler gets rank 0's
            position: what such a position counts has to be the same on all ranks.
        seed: Seeds the random state of ranks that the checkpoint doesn't know.
        sampler: An object with ``load_state_dict``, or None.

    Raises:
        CheckpointError: There is a sampler, and the checkpoint was written without one.
    """
    if sampler is not None:
        writer = rank if world_size == len(loaded.ranks) else 0
        position = loaded.ranks[writer].get("sampler") if loaded.ranks else None
        if position is None:
            raise CheckpointError(
                f"{loaded.where} holds no sampler position; pass the sampler in the writing run too, or "
                "none here and skip to the start step"
            )
        sampler.load_state_dict(position)
    is_same_world = world_size == len(loaded.ranks)
    if is_same_world and loaded.ranks[rank].get("optimizer") is not None:
        # The hyperparameters stay: the scheduler has set this replica's.
        groups = optimizer.state_dict()["param_groups"]
        _load_optimizer(optimizer, {"state": loaded.ranks[rank]["optimizer"], "param_groups": groups})
    if rank < len(loaded.ranks):
        restore_rng(loaded.ranks[rank]["rng"])
    else:
        seed_rng(seed, rank)


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside DDP and ``torch.compile``."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def group_layouts(optimizer: Optimizer) -> tuple[GroupLayout, ...]:
    """Shapes and dtypes of each parameter group, as the manifest keeps them."""
    layouts = []
    for group in optimizer.param_groups:
        tensors = group["params"]
        layout = json.dumps([[list(tensor.shape), str(tensor.dtype)] for tensor in tensors])
        layouts.append(
            GroupLayout(
                num_tensors=len(tensors),
                num_elements=sum(tensor.numel() for tensor in tensors),
                digest=hashlib.blake2b(layout.encode(), digest_size=20).hexdigest(),
            )
        )
    return tuple(layouts)


def local_opener(folder: Path) -> OpenFile:
    """Opens files of a local checkpoint, for `hdet_ray.train.manifest`."""

    def open_file(name: str) -> BinaryIO:
        return (folder / name).open("rb")

    return open_file


def _plain_weights(model: nn.Module) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in unwrap(model).state_dict().items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"the model's state_dict holds {name!r} of type {type(value).__name__}, and a weights file "
                "holds tensors only; keep it in an object of its own and pass that to attach(extra=…)"
            )
        tensor = value.detach().cpu().contiguous()
        # Tied weights: the file format refuses shared memory, so each name gets its own copy.
        storage = tensor.untyped_storage()
        owns_memory = storage.nbytes() == tensor.nbytes and storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        weights[name] = tensor if owns_memory else tensor.clone()
    return weights


def _require_loadable(
    optimizer: Optimizer, ranks: Sequence[Mapping[str, Any]], extra: Mapping[str, Any]
) -> None:
    """Whatever is saved without an error must load: a fault is too late to find that it doesn't."""
    parts = {"the optimizer's param_groups": optimizer.state_dict()["param_groups"]}
    parts |= {f"extra={name!r}": state for name, state in extra.items()}
    parts |= {f"the sampler of rank {rank}": state.get("sampler") for rank, state in enumerate(ranks)}
    for name, part in parts.items():
        stream = io.BytesIO()
        torch.save(_without_tensors(part), stream)
        stream.seek(0)
        try:
            torch.load(stream, weights_only=True)
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{name} can be saved but not loaded ({_what_is_refused(error)}); let its state_dict hold "
                "tensors, numbers, strings, lists and dicts alone (float(x) of a NumPy number)"
            ) from error


def _without_tensors(value: Any) -> Any:
    """The same with None for each tensor: those load, and are many bytes."""
    if isinstance(value, Tensor):
        return None
    if type(value) is dict:
        return {key: _without_tensors(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return [_without_tensors(item) for item in value]
    return value


def _what_is_refused(error: Exception) -> str:
    found = re.search(r"GLOBAL (\S+)", str(error))
    return found[1] if found else type(error).__name__


def _survives_json(value: Any) -> bool:
    """JSON gives the value back as it was. It would make text of a Counter's numbers, lists of tuples."""
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError):
        return False


def _load_tensors(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    groups = optimizer.param_groups
    optimizer.load_state_dict(state)
    # torch puts new dicts in place of the groups; whoever holds a group (schedulers do) would go on
    # writing to the old one.
    for group, loaded_group in zip(groups, optimizer.param_groups, strict=True):
        group.clear()
        group.update(loaded_group)
    optimizer.param_groups = groups


def _require_same_weights(loaded: Loaded, model: nn.Module) -> None:
    here = model.state_dict()
    for name in sorted(here.keys() | loaded.weights.keys()):
        if name not in loaded.weights:
            raise _other_model(loaded, f"it lacks {name!r}, which this model has")
        if name not in here:
            raise _other_model(loaded, f"it has {name!r}, which this model lacks")
        ours, theirs = here[name], loaded.weights[name]
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            raise _other_model(
                loaded,
                f"its {name!r} is {tuple(theirs.shape)} {theirs.dtype}, here it is "
                f"{tuple(ours.shape)} {ours.dtype}",
            )


def _other_model(loaded: Loaded, difference: str) -> CheckpointError:
    return CheckpointError(
        f"{loaded.where} is of another model: {difference}; build the model that the writing run had, "
        "or start under a new run name"
    )


def _require_same_groups(loaded: Loaded, optimizer: Optimizer) -> None:
    here, there = group_layouts(optimizer), loaded.manifest.groups
    remedy = "give the optimizer the groups that the writing run had, in that order"
    if len(here) != len(there):
        raise CheckpointError(
            f"{loaded.where} was written with {len(there)} parameter groups, this optimizer has "
            f"{len(here)}; {remedy}"
        )
    for index, (ours, theirs) in enumerate(zip(here, there, strict=True)):
        if ours.digest != theirs.digest:
            raise CheckpointError(
                f"parameter group {index} of {loaded.where} has {theirs.num_tensors} tensors with "
                f"{theirs.num_elements} elements, here it has {ours.num_tensors} with {ours.num_elements}, "
                f"or their shapes, dtypes or order differ; {remedy}"
            )
