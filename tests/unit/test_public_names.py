"""What `import hdet_ray` promises: these names, nothing heavy, and a remedy where a dependency is missing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hdet_ray
import hdet_ray.data

ROOT = Path(hdet_ray.__file__).resolve().parent.parent

PUBLIC = [
    "AttentionTemperature",
    "Auto",
    "Betas",
    "CheckpointError",
    "CollectiveError",
    "ConfigError",
    "Control",
    "DivergenceError",
    "Dropout",
    "Fixed",
    "HDETError",
    "HDETOneCycleLR",
    "HDETScheduler",
    "HDETTrainer",
    "Handle",
    "Hyperparameter",
    "LabelSmoothing",
    "LedgerError",
    "LocalControl",
    "MissingExtraError",
    "Momentum",
    "Override",
    "OverrideError",
    "Paper",
    "ProbeError",
    "RollbackLimitError",
    "ScheduleExhaustedError",
    "SearchError",
    "Thresholds",
    "WeightDecay",
    "__version__",
    "attach",
    "average_parameters",
    "decide",
    "export_weights",
    "replay",
    "start",
    "value_at",
]

DATA = ["DatasetShard", "ElasticDataConfig", "ElasticSampler", "get_dataset_shard"]


def python(code: str, *options: str) -> str:
    """What a fresh interpreter prints for ``code``, run in the checkout."""
    command = [sys.executable, *options, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout.strip()


def test_the_public_names_are_these() -> None:
    assert sorted(hdet_ray.__all__) == sorted(PUBLIC)
    assert set(PUBLIC) <= set(dir(hdet_ray))


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_loads_what_it_names(name: str) -> None:
    value = getattr(hdet_ray, name)
    assert getattr(value, "__name__", name) == name


def test_type_checkers_and_python_see_the_same_names() -> None:
    tree = ast.parse(Path(hdet_ray.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        node.module: sorted(alias.name for alias in node.names)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
    }
    assert seen == {module: sorted(names) for module, names in hdet_ray._NAMES.items()}
    assert sorted([*hdet_ray._MODULE_OF, "__version__"]) == sorted(hdet_ray.__all__)


def test_the_import_leaves_torch_and_ray_out(capsys: pytest.CaptureFixture[str]) -> None:
    """Prints what the import costs, too; a time on a shared machine decides nothing."""
    code = (
        "import time; began = time.perf_counter(); import hdet_ray; cost_s = time.perf_counter() - began\n"
        "print(f'{cost_s * 1e3:.1f} ms', *{'torch', 'ray', 'numpy', 'typer'} & set(sys.modules), sep=',')"
    )
    cost, *heavy = python(code).split(",")
    with capsys.disabled():
        print(f"\nimport hdet_ray adds {cost} to a bare interpreter")
    assert heavy == []


@pytest.mark.parametrize(
    ("missing", "name", "remedy"),
    [
        ("torch", "HDETOneCycleLR", "pip install hdet-ray"),
        ("ray", "HDETTrainer", "pip install 'hdet-ray[ray]'"),
    ],
)
def test_a_missing_dependency_names_its_remedy(missing: str, name: str, remedy: str) -> None:
    said = python(
        f"sys.modules[{missing!r}] = None\n"
        f"import hdet_ray\n"
        f"try: hdet_ray.{name}\n"
        f"except hdet_ray.MissingExtraError as error: print(error)"
    )
    assert said.endswith(f"run: {remedy}")
    assert missing in said


def test_the_names_for_data_are_these_and_load() -> None:
    assert sorted(hdet_ray.data.__all__) == sorted(DATA)
    for name in DATA:
        assert getattr(hdet_ray.data, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Sampler'"):
        _ = hdet_ray.data.Sampler


def test_the_sampler_needs_no_ray_and_a_shard_says_that_it_does() -> None:
    said = python(
        "sys.modules['ray'] = None\n"
        "import hdet_ray, hdet_ray.data\n"
        "print(hdet_ray.data.ElasticSampler.__name__)\n"
        "try: hdet_ray.data.get_dataset_shard\n"
        "except hdet_ray.MissingExtraError as error: print(error)"
    )
    sampler, refusal = said.splitlines()
    assert sampler == "ElasticSampler"
    assert refusal.endswith("run: pip install 'hdet-ray[ray]'")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'OneCycle'"):
        _ = hdet_ray.OneCycle


def test_the_core_needs_only_the_standard_library() -> None:
    """Loaded by an interpreter that sees no installed package at all."""
    loaded = python(
        "import importlib, pkgutil\n"
        "import hdet_ray, hdet_ray.config, hdet_ray.core as core\n"
        "names = [m.name for m in pkgutil.walk_packages(core.__path__, 'hdet_ray.core.')]\n"
        "for name in names: importlib.import_module(name)\n"
        "print(len(names))",
        "-S",
    )
    assert int(loaded) > 0
