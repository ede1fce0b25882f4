"""Handwritten digits in noise: a small classifier on scikit-learn's 8 x 8 images.

Each training image gets fresh Gaussian noise every time that it is drawn, so that a run of thousands of
steps doesn't learn 1,078 images by heart. ``fresh_noise=False`` draws each image's noise once: the
overfitting case, where short trials are known to mislead any search of the rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu

from hdet_ray.exceptions import MissingExtraError
from hdet_ray.workloads.counters import generator
from hdet_ray.workloads.settings import RunSettings

Split = Literal["train", "val", "test"]

NUM_CLASSES = 10
NUM_PIXELS = 64
_SPLIT_OF_IMAGE: tuple[Split, ...] = ("train",) * 3 + ("val", "test")
"""Of every five images in shuffled order, three are trained on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(RunSettings):
    """A digits run."""

    max_lr: float = 1e-2
    hidden: tuple[int, ...] = (96, 64)
    """Widths of the hidden layers."""
    dropout: float = 0.0
    noise: float = 0.5
    """Standard deviation of the noise; pixels lie in [0, 1]."""
    fresh_noise: bool = True
    """Draw the noise of training images anew at each step."""
    eval_draws: int = 40
    """Noise draws of each image on which val and test loss are measured."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {},
        "small": {"hidden": (256, 128), "dropout": 0.1, "total_steps": 4500, "batch_size": 32},
    }


class DigitsMLP(nn.Module):
    """Hidden layers with dropout, from pixels to a logit for each class."""

    def __init__(self, hidden: tuple[int, ...], dropout: float) -> None:
        super().__init__()
        widths = (NUM_PIXELS, *hidden)
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(widths[-1], NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, 10)`` of images ``(B, 64)``."""
        x = images
        for layer in self.hidden:
            x = self.dropout(gelu(layer(x)))
        logits: Tensor = self.head(x)
        return logits


class Task:
    """Data and model of one run: every batch is a function of its number, so any step can be resumed."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.clean = {split: load_images(split) for split in ("train", "val", "test")}
        self.train_images = self._noisy(self.clean["train"][0], generator(settings.seed, "digits/once"))

    def build_model(self) -> nn.Module:
        """The untrained model: the same for the same seed, on every rank."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            return DigitsMLP(self.settings.hidden, self.settings.dropout)

    def batch(self, step: int, rank: int) -> tuple[Tensor, Tensor]:
        """Training samples: images ``(B, 64)`` and labels ``(B,)`` for a rank at a step."""
        draw = generator(self.settings.seed, "digits/train", step, rank)
        images, labels = self.clean["train"]
        chosen = torch.randint(len(labels), (self.settings.batch_size,), generator=draw)
        if self.settings.fresh_noise:
            return self._noisy(images[chosen], draw), labels[chosen]
        return self.train_images[chosen], labels[chosen]

    def probe_batch(self, k: int) -> tuple[Tensor, Tensor]:
        """Probe samples number k, from images that are not trained on: the same on every rank."""
        draw = generator(self.settings.seed, "digits/probe", k)
        images, labels = self.clean["val"]
        chosen = torch.randint(len(labels), (self.settings.probe_samples,), generator=draw)
        return self._noisy(images[chosen], draw), labels[chosen]

    def evaluation(self, split: Split) -> tuple[Tensor, Tensor]:
        """Every image of a split under several draws of noise: the same for every seed."""
        images, labels = self.clean[split]
        repeats = self.settings.eval_draws
        noisy = self._noisy(images.repeat(repeats, 1), generator(0, f"digits/{split}"))
        return noisy, labels.repeat(repeats)

    def _noisy(self, images: Tensor, draw: torch.Generator) -> Tensor:
        return images + self.settings.noise * torch.randn(images.shape, generator=draw)


@cache
def load_images(split: Split) -> tuple[Tensor, Tensor]:
    """Images ``(n, 64)`` with pixels in [0, 1], and labels ``(n,)``, of one split.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingExtraError(
            "the workload 'digits' needs scikit-learn: pip install 'hdet-ray[ray]'"
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=generator(0, "digits/split")).tolist()
    chosen = [i for place, i in enumerate(order) if _SPLIT_OF_IMAGE[place % len(_SPLIT_OF_IMAGE)] == split]
    return torch.tensor(pixels[chosen] / 16, dtype=torch.float32), torch.tensor(labels[chosen])


@torch.no_grad()
def evaluate(model: nn.Module, samples: tuple[Tensor, Tensor]) -> float:
    """Mean cross-entropy in nats per image."""
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
        images, labels = task.probe_batch(k)
        return cross_entropy(network(images), labels)

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
        images, labels = task.batch(step, rank)
        optimizer.zero_grad()
        loss = cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        scheduler.step(loss)

    splits: tuple[Split, ...] = ("val", "test")
    ray.train.report({f"{split}_loss": evaluate(network, task.evaluation(split)) for split in splits})
