"""Specs from files and flags: what is written is what is meant; what can't work is named before sending."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hdet_ray.cli.specs import Flags, check, read_spec, spec_of
from hdet_ray.exceptions import ConfigError

MINIMAL = {"name": "x", "entrypoint": "byte_lm", "replicas": {"min": 3, "max": 3}}


def written(tmp_path: Path, text: str, name: str = "job.yaml") -> str:
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def test_yaml_and_json_say_the_same(tmp_path: Path) -> None:
    yaml_file = written(tmp_path, "name: x\nentrypoint: byte_lm\nreplicas: {min: 3, max: 3}\n")
    json_file = written(tmp_path, json.dumps(MINIMAL), "job.json")
    assert read_spec(yaml_file) == read_spec(json_file) == MINIMAL


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("3E4", 3e4),
        (".5", 0.5),
        ("-0.1", -0.1),
        ("12", 12),
        ("012", "012"),
        ("1:30", "1:30"),
        ("yes", "yes"),
        ("off", "off"),
        ("true", True),
        ("2026-01-01", "2026-01-01"),
        ("~", None),
        ("", None),
        ("1_000", "1_000"),
        ("'5'", "5"),
    ],
)
def test_a_plain_yaml_value_is_what_it_looks_like(tmp_path: Path, text: str, value: Any) -> None:
    found = read_spec(written(tmp_path, f"config:\n  key: {text}\n"))["config"]["key"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("name", ["job.yaml", "job.json"])
def test_a_key_that_stands_twice_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="'name' stands twice"):
        read_spec(written(tmp_path, '{"name": "x", "name": "y"}', name))


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words", "", "a: [1", "!!python/object:os.system {}"])
def test_a_file_without_a_mapping_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"job\.yaml"):
        read_spec(written(tmp_path, text))


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        read_spec("none.yaml")


def test_flags_alone_make_a_whole_spec() -> None:
    spec = spec_of(None, Flags(entrypoint="byte_lm", replicas=3, settings=["preset=tiny", "max_lr=1e-3"]))
    check(spec)
    assert spec == {
        "name": "byte_lm",
        "entrypoint": "byte_lm",
        "replicas": {"min": 3, "max": 3},
        "config": {"preset": "tiny", "max_lr": 1e-3},
    }


def test_flags_win_over_the_file_and_leave_the_rest_of_it(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "name: x\nentrypoint: byte_lm\nreplicas: {min: 3, max: 3, cpus_per_rank: 2}\nconfig: {a: 1, b: 2}\n"
        "runtime_env: {env_vars: {A: one}}\n",
    )
    flags = Flags(
        name="y", replicas=4, settings=["b=3"], env=["B=two=2"], labels=["team=nlp"], pip=["einops"]
    )
    assert spec_of(file, flags) == {
        "name": "y",
        "entrypoint": "byte_lm",
        "replicas": {"min": 4, "max": 4, "cpus_per_rank": 2},
        "config": {"a": 1, "b": 3},
        "runtime_env": {"env_vars": {"A": "one", "B": "two=2"}, "pip": ["einops"]},
        "labels": {"team": "nlp"},
    }


@pytest.mark.parametrize(
    ("entrypoint", "name"),
    [
        ("byte_lm", "byte_lm"),
        ("my.module:train_loop", "train_loop"),
        ("python train.py --x", "python-train.py-x"),
    ],
)
def test_a_job_without_a_name_is_named_after_its_entrypoint(entrypoint: str, name: str) -> None:
    spec = spec_of(None, Flags(entrypoint=entrypoint, replicas=1))
    check(spec)
    assert spec["name"] == name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"replicas": {"min": 0, "max": 0}}, "replicas.min"),
        ({"replicas": {"min": "3", "max": 3}}, "replicas.min"),
        ({"replica": 3}, "replica: is not known"),
        ({"entrypoint": "bite_lm"}, "byte_lm, digits"),
        ({"config": {"lr": float("nan")}}, "not finite"),
        ({"hdet": {"controller": "magic"}}, "hdet"),
        ({"labels": {"a b": "c"}}, "labels"),
    ],
)
def test_what_can_not_work_is_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check({**MINIMAL, **change})
    assert words in str(caught.value)


def test_all_that_is_wrong_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        check({"entrypoint": 3, "replicas": {"min": 1, "max": 1, "x": 1}})
    for words in ("name: is missing", "entrypoint", "replicas.x: is not known"):
        assert words in str(caught.value)


@pytest.mark.parametrize("flags", [Flags(settings=["lr"]), Flags(env=["=1"]), Flags(labels=["x"])])
def test_an_assignment_without_its_sign_is_named(flags: Flags) -> None:
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        spec_of(None, flags)
