"""Training: the loop that `throughput` and `search` time, under torch's scheduler or ours.

A byte model under DistributedDataParallel. Batches are drawn beforehand on every side: what is compared is
training, and a slow data loader would hide the differences.
"""

from __future__ import annotations

import math
from itertools import cycle

import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import OneCycleLR

from hdet_ray.config import Auto, Controller
from hdet_ray.optim.scheduler import HDETOneCycleLR
from hdet_ray.workloads.byte_lm import Settings, Task

SMALL = Settings.from_config({"preset": "small"})
"""117 thousand parameters: a step is so short that everything else shows."""
MILLION = Settings.from_config(
    {"preset": "small", "context": 32, "embedding": 32, "hidden": (768, 256), "max_lr": 1e-3}
)
"""1.02 million parameters."""
_NUM_BATCHES = 1024
_NUM_PROBE_BATCHES = math.ceil((Auto().scout_samples + Auto().pair_samples) / MILLION.probe_samples)


class Loop:
    """One training run, a number of steps at a time; collective to make and to advance.

    Args:
        settings: Of the byte model; its own controller is not looked at.
        controller: Of our scheduler; ``None`` trains with torch's `OneCycleLR`.
        seed: Of the data.
    """

    def __init__(self, settings: Settings, controller: Controller | None, seed: int = 0) -> None:
        task = Task(settings)
        rank = dist.get_rank()
        first = seed * _NUM_BATCHES
        self._batches = cycle([task.batch(step, rank) for step in range(first, first + _NUM_BATCHES)])
        network = task.build_model()
        self.num_parameters = sum(parameter.numel() for parameter in network.parameters())
        self._model = DistributedDataParallel(network)
        self._optimizer = settings.build_optimizer(self._model)
        self.ours: HDETOneCycleLR | None = None
        self._torchs: OneCycleLR | None = None
        if controller is None:
            self._torchs = OneCycleLR(
                self._optimizer, max_lr=settings.max_lr, total_steps=settings.total_steps
            )
            return
        probe_batches = [task.probe_batch(k) for k in range(_NUM_PROBE_BATCHES)]

        def probe(k: int) -> Tensor:
            contexts, targets = probe_batches[k]
            return cross_entropy(network(contexts), targets)

        self.ours = HDETOneCycleLR(
            self._optimizer,
            max_lr=settings.max_lr,
            total_steps=settings.total_steps,
            controller=controller,
            model=self._model,
            probe=probe,
            probe_samples=settings.probe_samples,
        )

    def advance(self, num_steps: int) -> None:
        """Train."""
        for _ in range(num_steps):
            self._step()

    def search(self) -> int:
        """Train until the search has ended; returns the steps it took."""
        num_steps = 0
        while self.ours is not None and self.ours.plan.is_search:
            self._step()
            num_steps += 1
        return num_steps

    def _step(self) -> None:
        contexts, targets = next(self._batches)
        self._optimizer.zero_grad()
        loss = cross_entropy(self._model(contexts), targets)
        loss.backward()
        self._optimizer.step()
        if self.ours is not None:
            self.ours.step(loss)
        elif self._torchs is not None:
            self._torchs.step()
