"""A run whose driver was killed asks for its nodes under the name that the driver before had."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("ray")

from ray.train import RunConfig, ScalingConfig
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy

from hdet_ray.train.scaling import FreshScalingPolicy


def test_each_start_of_a_run_asks_for_nodes_under_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        ElasticScalingPolicy, "after_controller_start", lambda self, context: asked.append(context.run_id)
    )

    def start(name: str, place: str) -> TrainRunContext:
        sizes: Any = (1, 2)
        scaling = ScalingConfig(num_workers=sizes)
        context = TrainRunContext(
            run_config=RunConfig(name=name, storage_path=place),
            train_loop_config=None,
            scaling_config=scaling,
            backend_config=None,  # type: ignore[arg-type]
            dataset_config=None,  # type: ignore[arg-type]
        )
        FreshScalingPolicy(scaling).after_controller_start(context)
        return context

    first, second = start("job", "/runs"), start("job", "/runs")
    assert first.run_id != second.run_id, "Ray's own names stay as they are"
    start("other", "/runs")
    start("job", "/elsewhere")
    assert asked[0] == asked[1]
    assert len(set(asked)) == 3
