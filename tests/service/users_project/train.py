"""The same project with a driver of its own: a plain TorchTrainer, as its user had it before."""

from __future__ import annotations

import json
import sys

from mine import train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

config = json.loads(sys.argv[1])
TorchTrainer(
    train,
    train_loop_config=config,
    scaling_config=ScalingConfig(num_workers=2),
    run_config=RunConfig(
        name="own", storage_path=config["trace"], failure_config=FailureConfig(max_failures=2)
    ),
).fit()
