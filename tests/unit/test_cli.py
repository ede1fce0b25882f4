"""The command line: what it says and which code it ends with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from hdet_ray.cli.assignments import parse_assignments
from hdet_ray.cli.main import app
from hdet_ray.exceptions import ConfigError
from tests.unit.synthetic_ledger import ledger_lines

DEFAULTS = {
    "max_lr": 1e-2,
    "total_steps": 1500,
    "controller": "auto",
    "fresh_noise": True,
    "note": None,
    "hidden": (64,),
}


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.jsonl"
    path.write_text("\n".join(ledger_lines(num_rounds=6)) + "\n")
    return path


def hdet(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def tamper(path: Path, line: int, old: str, new: str) -> None:
    lines = path.read_text().splitlines()
    assert old in lines[line]
    lines[line] = lines[line].replace(old, new)
    path.write_text("\n".join(lines) + "\n")


def test_help_lists_every_command() -> None:
    outcome = hdet("--help")
    assert outcome.exit_code == 0
    for command in ("demo", "train", "replay", "report", "export"):
        assert command in outcome.output


def test_help_loads_neither_torch_nor_ray_nor_a_chart_library() -> None:
    program = (
        "import sys\nfrom hdet_ray.cli.main import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        "loaded = {'torch', 'ray', 'numpy', 'plotly', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'loaded {loaded}' if loaded else 0)"
    )
    outcome = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr


def test_a_true_ledger_replays_in_full(ledger: Path) -> None:
    outcome = hdet("replay", ledger)
    assert outcome.exit_code == 0
    assert "6 rounds replayed" in outcome.output


def test_replay_as_json_counts_the_rounds(ledger: Path) -> None:
    outcome = hdet("replay", ledger, "--json")
    assert outcome.exit_code == 0
    assert json.loads(outcome.output) == {
        "ok": True,
        "rounds": 6,
        "rounds_in_ledger": 6,
        "step": 320,
        "departure": None,
    }


def test_replay_says_where_a_tampered_plan_departs(ledger: Path) -> None:
    tamper(ledger, 3, '"num_steps": 40', '"num_steps": 41')
    outcome = hdet("replay", ledger)
    assert outcome.exit_code == 1
    for words in ("round 2", "plan.num_steps", "recorded  41", "expected  40"):
        assert words in outcome.output


def test_replay_notices_a_tampered_report(ledger: Path) -> None:
    tamper(ledger, 2, '"is_finite": true', '"is_finite": false')
    outcome = hdet("replay", ledger, "--json")
    assert outcome.exit_code == 1
    departure = json.loads(outcome.output)["departure"]
    assert (departure["round"], departure["field"]) == (1, "report")


def test_a_ledger_with_a_gap_fails_and_names_the_missing_round(ledger: Path) -> None:
    lines = ledger.read_text().splitlines()
    ledger.write_text("\n".join(lines[:3] + lines[4:]) + "\n")
    outcome = hdet("replay", ledger)
    assert outcome.exit_code == 1
    assert "round 2 is due" in outcome.stderr


def test_a_broken_line_fails_with_its_number_and_without_a_traceback(ledger: Path) -> None:
    ledger.write_text(ledger.read_text()[:-40])
    outcome = hdet("replay", ledger)
    assert outcome.exit_code == 1
    assert "line 7" in outcome.stderr
    assert "Traceback" not in outcome.output


def test_a_broken_ledger_is_told_as_json_too(ledger: Path) -> None:
    ledger.write_text("{}\n")
    outcome = hdet("replay", ledger, "--json")
    assert outcome.exit_code == 1
    assert json.loads(outcome.output)["ok"] is False


def test_a_ledger_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    assert hdet("replay", tmp_path / "none.jsonl").exit_code == 2


def test_a_report_is_written_from_a_ledger(ledger: Path, tmp_path: Path) -> None:
    page, picture = tmp_path / "r.html", tmp_path / "r.png"
    outcome = hdet("report", ledger, "-o", page, "--png", picture, "--reference", f"again={ledger}")
    assert outcome.exit_code == 0, outcome.output
    assert page.stat().st_size > 1_000_000
    assert picture.exists()


def test_a_reference_without_a_name_is_a_usage_error(ledger: Path, tmp_path: Path) -> None:
    outcome = hdet("report", ledger, "-o", tmp_path / "r.html", "--reference", ledger)
    assert outcome.exit_code == 2
    assert "NAME=LEDGER" in outcome.stderr


def test_a_missing_package_is_named_with_its_remedy(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.delitem(sys.modules, "hdet_ray.cli.report", raising=False)
    outcome = hdet("report", ledger)
    assert outcome.exit_code == 2
    assert "hdet report needs plotly" in outcome.stderr
    assert "pip install 'hdet-ray[ray]'" in outcome.stderr


def test_an_unknown_workload_is_a_usage_error_that_names_the_known_ones() -> None:
    outcome = hdet("train", "bite_lm")
    assert outcome.exit_code == 2
    assert "byte_lm" in outcome.stderr
    assert "digits" in outcome.stderr


def test_an_unknown_setting_is_refused_before_anything_starts() -> None:
    outcome = hdet("train", "byte_lm", "--set", "max_rl=0.1")
    assert outcome.exit_code == 2
    assert "Did you mean 'max_lr'?" in outcome.stderr


def test_an_export_of_no_checkpoint_fails_in_one_line(tmp_path: Path) -> None:
    outcome = hdet("export", tmp_path, "-o", tmp_path / "model.safetensors")
    assert outcome.exit_code == 1
    assert "manifest.json" in outcome.stderr
    assert "Traceback" not in outcome.output


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("max_lr=3e-4", "max_lr", 3e-4),
        ("max_lr=1", "max_lr", 1.0),
        ("total_steps=900", "total_steps", 900),
        ("total_steps=1e3", "total_steps", 1000),
        ("controller=paper", "controller", "paper"),
        ("controller=1", "controller", "1"),
        ("fresh_noise=no", "fresh_noise", False),
        ("hidden=128,64", "hidden", (128, 64)),
        ("hidden=32", "hidden", (32,)),
        ("note=none", "note", None),
        ("note=2.5", "note", 2.5),
        (" max_lr = 2 ", "max_lr", 2.0),
    ],
)
def test_a_set_value_takes_the_type_of_its_setting(text: str, key: str, value: object) -> None:
    parsed = parse_assignments([text], DEFAULTS)
    assert parsed == {key: value}
    assert type(parsed[key]) is type(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_lr", "key=value"),
        ("=3", "key=value"),
        ("max_lr=fast", "takes a number"),
        ("max_lr=none", "takes a number"),
        ("total_steps=1.5", "takes an integer"),
        ("total_steps=true", "takes an integer"),
        ("fresh_noise=2", "takes true or false"),
        ("hidden=64,wide", "takes an integer"),
        ("steps=3", "Known: controller, fresh_noise, hidden, max_lr, note, total_steps"),
    ],
)
def test_a_set_value_that_cannot_be_is_refused_with_the_remedy(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_assignments([text], DEFAULTS)
