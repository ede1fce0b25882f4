"""A language model of bytes: the next byte of Python's standard library, from the bytes before it.

The text is on every machine that runs this, so nothing is downloaded. It differs a little from one
release of Python to the next: compare losses within one release only.
"""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu

from hdet_ray.exceptions import ConfigError
from hdet_ray.workloads.counters import generator
from hdet_ray.workloads.settings import RunSettings

Split = Literal["train", "val", "test"]

VOCABULARY = 128
"""ASCII; other bytes are left out."""
_SPLIT_OF_FILE: tuple[Split, ...] = ("train",) * 8 + ("val", "test")
"""Of every ten files in sorted order, eight are trained on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(RunSettings):
    """A byte model's run."""

    max_lr: float = 1e-2
    context: int = 12
    """Bytes that the model sees."""
    embedding: int = 8
    """Width of a byte's embedding."""
    embedding_std: float = 0.3
    """Standard deviation of untrained embeddings. torch's default of 1 saturates the first steps with the
    rows of a few frequent bytes: short trials then prefer rates far below what a whole run takes."""
    hidden: tuple[int, ...] = (64,)
    """Widths of the hidden layers."""
    eval_samples: int = 16_384
    """Windows on which val and test loss are measured, evenly spaced over the split's text."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {},
        "small": {
            "context": 24,
            "embedding": 16,
            "hidden": (192, 128),
            "total_steps": 4500,
            "batch_size": 32,
        },
    }


class ByteMLP(nn.Module):
    """Embeddings of the context, side by side, through hidden layers to a logit for each byte."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, settings.embedding)
        nn.init.normal_(self.embed.weight, std=settings.embedding_std)
        widths = (settings.context * settings.embedding, *settings.hidden)
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.head = nn.Linear(widths[-1], VOCABULARY)

    def forward(self, context: Tensor) -> Tensor:
        """Logits of the next byte, ``(B, 128)``, from a context ``(B, T)`` of bytes."""
        x = self.embed(context).flatten(1)  # (B, T, E) -> (B, T * E)
        for layer in self.hidden:
            x = gelu(layer(x))
        logits: Tensor = self.head(x)
        return logits


class Task:
    """Data and model of one run: every batch is a function of its number, so any step can be resumed."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.text = {split: load_text(split) for split in ("train", "val", "test")}

    def build_model(self) -> nn.Module:
        """The untrained model: the same for the same seed, on every rank."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            return ByteMLP(self.settings)

    def batch(self, step: int, rank: int) -> tuple[Tensor, Tensor]:
        """Training samples: contexts ``(B, T)`` and next bytes ``(B,)`` for a rank at a step."""
        draw = generator(self.settings.seed, "byte_lm/train", step, rank)
        return self._windows("train", self._starts("train", self.settings.batch_size, draw))

    def probe_batch(self, k: int) -> tuple[Tensor, Tensor]:
        """Probe samples number k, from text that is not trained on: the same on every rank."""
        draw = generator(self.settings.seed, "byte_lm/probe", k)
        return self._windows("val", self._starts("val", self.settings.probe_samples, draw))

    def evaluation(self, split: Split) -> tuple[Tensor, Tensor]:
        """Evenly spaced windows of a split: the same for every seed."""
        last = self._last_start(split)
        count = min(self.settings.eval_samples, last + 1)
        return self._windows(split, torch.arange(count) * last // max(count - 1, 1))

    def _starts(self, split: Split, count: int, draw: torch.Generator) -> Tensor:
        return torch.randint(self._last_start(split) + 1, (count,), generator=draw)

    def _last_start(self, split: Split) -> int:
        return len(self.text[split]) - self.settings.context - 1

    def _windows(self, split: Split, starts: Tensor) -> tuple[Tensor, Tensor]:
        offsets = torch.arange(self.settings.context + 1)
        windows = self.text[split][starts[:, None] + offsets].long()  # (B, T + 1)
        return windows[:, :-1], windows[:, -1]


@cache
def load_text(split: Split) -> Tensor:
    """The ASCII bytes of one split's files, in sorted order, as one long ``uint8`` vector.

    Raises:
        ConfigError: this Python comes without its library's source.
    """
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    chosen = [p for i, p in enumerate(paths) if _SPLIT_OF_FILE[i % len(_SPLIT_OF_FILE)] == split]
    if not chosen:
        raise ConfigError("this Python comes without its library's source; use the workload 'digits'")
    text = b"".join(p.read_bytes() for p in chosen).translate(None, delete=bytes(range(VOCABULARY, 256)))
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


@torch.no_grad()
def evaluate(model: nn.Module, samples: tuple[Tensor, Tensor]) -> float:
    """Mean cross-entropy in nats per byte."""
    model.eval()
    loss = cross_entropy(model(samples[0]), samples[1])
    model.train()
    return loss.item()


def train_loop_per_worker(config: dict[str, Any]) -> None:
    """One worker's training under Ray Train: what a user writes, from settings to the final loss."""
    import ray.train
    import ray.train.torch

    import hdet_ray

    settings = Settings.from_config(config)
    task = Task(settings)
    rank = ray.train.get_context().get_world_rank()
    network = task.build_model()
    model = ray.train.torch.prepare_model(network)
    optimizer = settings.build_optimizer(model)

    def probe(k: int) -> Tensor:
        contexts, targets = task.probe_batch(k)
        return cross_entropy(network(contexts), targets)

    scheduler = hdet_ray.HDETOneCycleLR(
        optimizer,
        max_lr=settings.max_lr,
        total_steps=settings.total_steps,
        controller=settings.build_controller(),
        model=model,
        probe=probe,
        probe_samples=settings.probe_samples,
        seed=settings.seed,
    )
    start_step = hdet_ray.attach(scheduler)

    for step in range(start_step, settings.total_steps):
        contexts, targets = task.batch(step, rank)
        optimizer.zero_grad()
        loss = cross_entropy(model(contexts), targets)
        loss.backward()
        optimizer.step()
        scheduler.step(loss)

    splits: tuple[Split, ...] = ("val", "test")
    ray.train.report({f"{split}_loss": evaluate(network, task.evaluation(split)) for split in splits})
