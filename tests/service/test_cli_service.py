"""The command line against the real service over HTTP: what it prints, sends, and ends with."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from typer.testing import CliRunner, Result

from hdet_ray.cli.main import app
from hdet_ray.cli.schedule import outcome_text
from hdet_service.client import HDETClient, Override
from hdet_service.store.housekeeping import Housekeeping
from tests.service.served import PlayedRun, Served, served

NO_BOUNDS: dict[str, Any] = {"requests_per_s": 1000.0, "request_burst": 1000, "max_running_jobs": 1000}
SPEC = {"entrypoint": "byte_lm", "replicas": {"min": 3, "max": 3}}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("home"), **NO_BOUNDS) as running:
        yield running


@pytest.fixture
def client(service: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[HDETClient]:
    for name in ("HDET_TOKEN", "HDET_PORT", "HDET_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HDET_HOME", str(service.home))
    monkeypatch.setenv("HDET_URL", service.url)
    monkeypatch.setenv("HDET_TOKEN", service.token)
    with HDETClient() as client:
        yield client


def hdet(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def done(*arguments: str | Path) -> str:
    outcome = hdet(*arguments)
    assert outcome.exit_code == 0, outcome.output
    return outcome.stdout


def played(service: Served, client: HDETClient, name: str, **run: Any) -> tuple[str, PlayedRun]:
    """A job with that name, and its run, opened."""
    job_id = client.submit({"name": name, **SPEC})["id"]
    return job_id, PlayedRun(service, job_id, **run)


def past_its_search(service: Served, client: HDETClient, name: str) -> tuple[str, PlayedRun]:
    """The same, once its search is over: values can be overridden."""
    job_id, run = played(service, client, name)
    while run.state.is_searching:
        run.advance()
    return job_id, run


def test_flags_submit_what_they_say(client: HDETClient) -> None:
    text = done(
        "submit", "--name", "flags", "--entrypoint", "byte_lm", "--replicas", "2", "--set", "max_lr=1e-3"
    )
    job_id = re.search(r"submitted flags as (\w+)", text)
    assert job_id is not None
    spec = client.job(job_id[1])["spec"]
    assert (spec["config"], spec["replicas"]["min"]) == ({"max_lr": 1e-3}, 2)
    assert f"hdet watch {job_id[1]}" in text


def test_a_yaml_file_submits_the_same_as_json(client: HDETClient, tmp_path: Path) -> None:
    yaml_file, json_file = tmp_path / "a.yaml", tmp_path / "a.json"
    yaml_file.write_text("name: filed\nentrypoint: byte_lm\nreplicas:\n  min: 3\n  max: 3\n")
    json_file.write_text(json.dumps({"name": "filed", **SPEC}))
    first, second = (json.loads(done("submit", file, "--json")) for file in (yaml_file, json_file))
    assert client.job(first["id"])["spec"] == client.job(second["id"])["spec"]


def test_a_dry_run_shows_the_job_and_submits_nothing(client: HDETClient, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def loop(config): ...\n")
    before = len(list(client.jobs()))
    text = done(
        "submit",
        "--entrypoint",
        "mine:loop",
        "--replicas",
        "2",
        "--working-dir",
        tmp_path,
        "--dry-run",
        "--json",
    )
    shown = json.loads(text)
    assert (shown["workers"], shown["package"]["names"]) == (2, ["mine.py"])
    assert len(list(client.jobs())) == before
    assert not list((tmp_path.parent).glob("packages/*"))


def test_a_folder_is_uploaded_and_becomes_the_working_dir(
    service: Served, client: HDETClient, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text("def loop(config): ...\n")
    command = ("submit", "--entrypoint", "mine:loop", "--replicas", "2", "--working-dir", tmp_path, "--json")
    first, second = json.loads(done(*command)), json.loads(done(*command))
    digest = client.job(first["id"])["spec"]["runtime_env"]["working_dir"]
    assert (service.home / "packages" / f"{digest}.zip").is_file()
    assert client.job(second["id"])["spec"]["runtime_env"]["working_dir"] == digest


def test_one_idempotency_key_makes_one_job(client: HDETClient) -> None:
    command = (
        "submit",
        "--name",
        "once",
        "--entrypoint",
        "byte_lm",
        "--replicas",
        "2",
        "--idempotency-key",
        "k1",
    )
    ids = {json.loads(done(*command, "--json"))["id"] for _ in range(3)}
    assert len(ids) == 1


def test_what_can_not_work_ends_with_2_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HDET_URL", "http://127.0.0.1:1")  # nobody is there: had it been sent, the code were 3
    for command in (
        ("submit", "--entrypoint", "bite_lm", "--replicas", "2"),
        ("submit", "--entrypoint", "byte_lm"),
        ("submit", "none.yaml"),
        ("submit", "--entrypoint", "byte_lm", "--replicas", "0"),
        ("jobs", "list", "--state", "GONE"),
        ("jobs", "list", "--label", "team"),
        ("schedule", "override", "x"),
        ("schedule", "override", "x", "--set", "1", "--scale", "2"),
        ("schedule", "override", "x", "--scale", "-1"),
        ("schedule", "override", "x", "--set", "nan"),
        ("schedule", "bound", "x", "--low", "2", "--high", "1"),
        ("token", "create", "ci", "--role", "king"),
    ):
        outcome = hdet(*command)
        assert outcome.exit_code == 2, (command, outcome.output)
        assert "Traceback" not in outcome.output


def test_nobody_there_ends_with_3_and_a_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv("HDET_HOME", str(tmp_path))
    monkeypatch.setenv("HDET_URL", f"http://127.0.0.1:{port}")
    outcome = hdet("jobs", "list")
    assert outcome.exit_code == 3
    assert "hdet up" in outcome.stderr
    assert len(outcome.stderr.strip().splitlines()) == 1


def test_a_token_that_nobody_knows_ends_with_4(client: HDETClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HDET_TOKEN", "hdet_" + "x" * 43)
    outcome = hdet("jobs", "list")
    assert outcome.exit_code == 4
    assert "HDET_TOKEN" in outcome.stderr
    assert "x" * 43 not in outcome.output


def test_an_ambiguous_name_ends_with_2_and_lists_the_jobs(client: HDETClient) -> None:
    ids = [client.submit({"name": "twice", **SPEC})["id"] for _ in range(2)]
    outcome = hdet("jobs", "cancel", "twice")
    assert outcome.exit_code == 2
    assert all(job_id in outcome.stderr for job_id in ids)
    assert all(client.job(job_id)["state"] != "CANCELED" for job_id in ids)


def test_a_job_that_is_not_there_ends_with_4(client: HDETClient) -> None:
    for command in (
        ("jobs", "show", "nosuch"),
        ("watch", "nosuch"),
        ("logs", "nosuch"),
        ("replay", "nosuch"),
    ):
        assert hdet(*command).exit_code == 4, command


def test_the_list_filters_and_says_whether_there_is_more(client: HDETClient) -> None:
    for _ in range(3):
        client.submit({"name": "labeled", "labels": {"team": "nlp"}, **SPEC})
    listed = json.loads(done("jobs", "list", "--label", "team=nlp", "--limit", "2", "--json"))
    assert (len(listed["items"]), listed["has_more"]) == (2, True)
    assert "--limit" in done("jobs", "list", "--label", "team=nlp", "--limit", "2")
    assert json.loads(done("jobs", "list", "--label", "team=cv", "--json")) == {
        "items": [],
        "has_more": False,
    }


def test_every_read_prints_json_that_is_one_document_without_colours(
    service: Served, client: HDETClient
) -> None:
    _, run = played(service, client, "read")
    run.advance(3)
    for command in (
        ("jobs", "list"),
        ("jobs", "show", "read"),
        ("schedule", "show", "read"),
        ("token", "list"),
        ("replay", "read"),
    ):
        text = done(*command, "--json")
        assert isinstance(json.loads(text), dict), command
        assert "\x1b" not in text


def test_a_watch_prints_each_round_and_ends_with_the_job(service: Served, client: HDETClient) -> None:
    job_id, run = played(service, client, "watched")
    run.finish()
    outcome = hdet("watch", "watched")
    assert outcome.exit_code == 0
    assert rounds_in(outcome.stdout) == list(range(run.state.round))
    events = [json.loads(line) for line in done("watch", job_id, "--json").splitlines()]
    assert [event["id"] for event in events] == sorted({event["id"] for event in events})


class Watching:
    """`hdet watch` in a process of its own, read line by line; ends with the block."""

    def __init__(self, job: str) -> None:
        program = [sys.executable, "-u", "-m", "hdet_ray.cli.main", "watch", job]
        self._process = subprocess.Popen(program, stdout=subprocess.PIPE, text=True)
        self._seen = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def read_until(self, words: str) -> None:
        """Wait for a line with these words."""
        assert self._process.stdout is not None
        line = ""
        while words not in line:
            line = self._process.stdout.readline()
            assert line, self._seen
            self._seen += line

    def end(self) -> tuple[int, str]:
        """Its exit code, and all that it printed."""
        self._seen += self._process.communicate(timeout=60)[0]
        return self._process.returncode, self._seen


def rounds_in(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"^round +(\d+) ", text, re.MULTILINE)]


def test_a_watch_that_begins_early_sees_each_round_once(service: Served, client: HDETClient) -> None:
    _, run = played(service, client, "early")
    run.advance(2)
    with Watching("early") as watching:
        watching.read_until("round   1")
        run.finish()
        code, text = watching.end()
    assert (code, rounds_in(text)) == (0, list(range(run.state.round)))
    assert "SUCCEEDED" in text


def test_a_watch_follows_a_restart_back_to_its_round(service: Served, client: HDETClient) -> None:
    _, run = played(service, client, "restarted")
    run.advance(6)
    with Watching("restarted") as watching:
        watching.read_until("round   5")
        run.restart(3)
        run.finish()
        code, text = watching.end()
    assert (code, rounds_in(text)) == (0, [*range(6), *range(3, run.state.round)])
    assert "attempt 2" in text


def test_a_job_that_failed_ends_its_watch_with_1(service: Served, client: HDETClient) -> None:
    _, run = played(service, client, "failing")
    run.advance(1)
    run.fail("SearchFailed", "no candidate was alive")
    outcome = hdet("watch", "failing")
    assert outcome.exit_code == 1
    assert "SearchFailed" in outcome.stdout
    assert hdet("jobs", "show", "failing").exit_code == 0


def test_a_jobs_ledger_replays_and_draws_like_a_file(
    service: Served, client: HDETClient, tmp_path: Path
) -> None:
    _, run = played(service, client, "drawn")
    run.finish()
    assert json.loads(done("replay", "drawn", "--json"))["rounds"] == run.state.round
    page = tmp_path / "page.html"
    done("report", "drawn", "-o", page)
    assert "drawn" in page.read_text()


def test_a_job_whose_run_was_not_opened_has_no_ledger_yet(client: HDETClient) -> None:
    client.submit({"name": "unopened", **SPEC})
    outcome = hdet("replay", "unopened")
    assert outcome.exit_code == 1
    assert "no ledger yet" in outcome.stderr


def test_an_override_is_previewed_stored_and_seen(service: Served, client: HDETClient) -> None:
    job_id, run = past_its_search(service, client, "steered")
    command = (
        "schedule",
        "override",
        "steered",
        "--scale",
        "0.5",
        "--for-rounds",
        "2",
        "--reason",
        "jumping",
    )
    assert "0.0150" in done(*command, "--dry-run")
    assert client.schedule(job_id)["overrides"] == []
    made = json.loads(done(*command, "--json"))
    assert made["state"] == "pending"
    run.advance(2)
    assert client.override_state(job_id, made["id"])["state"] == "applied"
    shown = done("schedule", "show", "steered")
    for words in ("applied", "jumping", "lr scale 0.5"):
        assert words in shown


def test_an_override_on_an_older_revision_is_refused(service: Served, client: HDETClient) -> None:
    past_its_search(service, client, "contested")
    done("schedule", "freeze", "contested")
    outcome = hdet("schedule", "override", "contested", "--set", "0.01", "--if-match", "0")
    assert outcome.exit_code == 4


def test_a_dry_run_takes_no_override_back(service: Served, client: HDETClient) -> None:
    job_id, _ = past_its_search(service, client, "kept")
    override = ("schedule", "override", "kept")
    made = json.loads(done(*override, "--set", "0.01", "--at-round", "80", "--json"))
    outcome = hdet(*override, "--remove", made["id"], "--dry-run")
    assert outcome.exit_code == 2
    assert "--dry-run" in outcome.stderr
    assert client.override_state(job_id, made["id"])["state"] == "pending"


def test_an_override_is_taken_back_on_the_named_revision_only_and_the_audit_says_why(
    service: Served, client: HDETClient
) -> None:
    job_id, _ = past_its_search(service, client, "regretted")
    override = ("schedule", "override", "regretted")
    made = json.loads(done(*override, "--set", "0.01", "--at-round", "80", "--json"))
    remove = (*override, "--remove", made["id"], "--reason", "too bold")
    assert hdet(*remove, "--if-match", "0").exit_code == 4
    assert client.override_state(job_id, made["id"])["state"] == "pending"
    done(*remove, "--if-match", "1")
    assert client.override_state(job_id, made["id"])["state"] == "removed"
    entry = next(entry for entry in client.audit() if entry["action"] == "remove_override")
    assert (entry["job_id"], entry["reason"]) == (job_id, "too bold")


@pytest.mark.parametrize("rounds_before", [1, 2])  # folded into a plan, and known to have been applied
def test_a_removal_can_be_waited_for(service: Served, client: HDETClient, rounds_before: int) -> None:
    name = f"patient-{rounds_before}"
    job_id, run = past_its_search(service, client, name)
    made = json.loads(done("schedule", "override", name, "--set", "0.01", "--json"))
    for _ in range(rounds_before):
        run.advance()
    assert client.override_state(job_id, made["id"])["state"] == ("pending", "applied")[rounds_before - 1]
    advance = threading.Timer(0.5, lambda: [run.advance() for _ in range(3)])
    advance.start()
    said = done("schedule", "override", name, "--remove", made["id"], "--wait")
    assert client.override_state(job_id, made["id"])["state"] == "removed"
    advance.join()
    assert said == f"override {made['id']} is taken back\n"


def test_waiting_for_a_removal_ends_with_the_job_and_says_what_became_of_it(
    service: Served, client: HDETClient
) -> None:
    job_id, run = past_its_search(service, client, "cut short")
    made = json.loads(done("schedule", "override", "cut short", "--set", "0.01", "--json"))
    for _ in range(2):
        run.advance()
    cancel = threading.Timer(0.5, lambda: client.cancel(job_id))
    cancel.start()
    outcome = hdet("schedule", "override", "cut short", "--remove", made["id"], "--wait")
    cancel.join()
    assert outcome.exit_code == 4
    assert "is applied since round" in outcome.stdout


def test_a_refused_override_says_why_it_was_refused_not_why_it_was_asked_for(
    service: Served, client: HDETClient
) -> None:
    job_id, _ = past_its_search(service, client, "hopeless")
    cancel = threading.Timer(0.5, lambda: client.cancel(job_id))
    cancel.start()
    outcome = hdet(
        "schedule",
        "override",
        "hopeless",
        "--set",
        "0.01",
        "--at-round",
        "80",
        "--reason",
        "why not",
        "--wait",
    )
    cancel.join()
    assert outcome.exit_code == 4
    assert "before it could apply" in outcome.stdout
    assert "why not" not in outcome.stdout


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("pending", "is pending and applies at round 9"),
        ("applied", "is applied since round 5"),
        ("expired", "was applied at round 5 and has expired"),
        ("removed", "was taken back"),
        ("refused", "was refused: too late"),
    ],
)
def test_each_outcome_of_an_override_has_its_own_words(state: Any, said: str) -> None:
    override = Override(
        id="o", state=state, applied_round=5, reason="why not", refusal="too late", applies_at_round=9
    )
    assert outcome_text(override) == f"override o {said}"


def test_freeze_resume_bound_and_removal_change_the_schedule(service: Served, client: HDETClient) -> None:
    job_id, run = past_its_search(service, client, "handled")
    done("schedule", "freeze", "handled", "--reason", "look")
    done("schedule", "bound", "handled", "--low", "1e-5", "--high", "0.5")
    run.advance()
    assert client.schedule(job_id)["frozen"] == ["lr"]  # type: ignore[typeddict-item]
    done("schedule", "resume", "handled")
    made = json.loads(done("schedule", "override", "handled", "--set", "0.01", "--json"))
    done("schedule", "override", "handled", "--remove", made["id"])
    run.advance()
    assert client.schedule(job_id)["bounds"]["lr"] == [1e-5, 0.5]
    assert client.override_state(job_id, made["id"])["state"] == "removed"


def test_a_rollback_to_a_round_without_a_checkpoint_is_refused(service: Served, client: HDETClient) -> None:
    _, run = played(service, client, "rolled")
    run.advance(3)
    outcome = hdet("schedule", "rollback", "rolled", "1")
    assert outcome.exit_code == 4
    assert "1" in outcome.stderr


def test_cancel_says_where_the_job_stands_and_delete_removes_it(client: HDETClient) -> None:
    job_id = client.submit({"name": "unwanted", **SPEC})["id"]
    assert hdet("jobs", "delete", job_id).exit_code == 4
    done("jobs", "cancel", job_id, "--reason", "seen enough")
    client.wait(job_id, poll_s=0.05)
    done("jobs", "delete", job_id)
    assert hdet("jobs", "show", job_id).exit_code == 4


def test_logs_come_as_they_were_written(service: Served, client: HDETClient) -> None:
    job_id = client.submit({"name": "talker", **SPEC})["id"]
    client.cancel(job_id)
    client.wait(job_id, poll_s=0.05)
    folder = service.home / "logs" / job_id
    folder.mkdir(parents=True)
    (folder / "1.log").write_text("".join(f"line {n}\n" for n in range(300)))
    assert done("logs", "talker").splitlines() == [f"line {n}" for n in range(300)]
    assert done("logs", "talker", "--tail", "2").splitlines() == ["line 298", "line 299"]
    assert done("logs", "talker", "-f", "--tail", "1").splitlines() == ["line 299"]
    assert json.loads(done("logs", "talker", "--tail", "1", "--json"))["line"] == "line 299"


def test_a_token_is_shown_once_works_and_can_be_revoked(
    service: Served, client: HDETClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = hdet("token", "create", "reader", "--role", "viewer")
    secret = outcome.stdout.strip()
    assert secret not in done("token", "list")
    with HDETClient(service.url, secret) as reader:
        assert reader.whoami() == {"name": "reader", "role": "viewer"}
    monkeypatch.setenv("HDET_TOKEN", secret)
    assert hdet("submit", "--entrypoint", "byte_lm", "--replicas", "2").exit_code == 4
    monkeypatch.setenv("HDET_TOKEN", service.token)
    done("token", "revoke", "reader")
    monkeypatch.setenv("HDET_TOKEN", secret)
    assert hdet("jobs", "list").exit_code == 4


def test_a_backup_is_taken_while_the_service_works_and_restores_elsewhere(
    client: HDETClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "b.tar.gz"
    assert json.loads(done("backup", archive, "--json"))["num_jobs"] == len(list(client.jobs()))
    assert hdet("backup", archive).exit_code == 4
    assert hdet("restore", archive, "--force").exit_code == 4  # its controller is up
    monkeypatch.setenv("HDET_HOME", str(tmp_path / "other"))
    assert "restored" in done("restore", archive)
    assert hdet("restore", archive).exit_code == 4


def test_help_loads_nothing_of_the_service() -> None:
    program = (
        "import sys\nfrom hdet_ray.cli.main import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'ray', 'numpy', 'httpx', 'pydantic', 'sqlalchemy', 'yaml', 'hdet_service'}\n"
        "loaded = heavy & set(sys.modules)\nsys.exit(f'loaded {loaded}' if loaded else 0)"
    )
    outcome = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr


def test_a_ledger_whose_old_rounds_were_thinned_replays_from_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(tmp_path, ledger_full_rounds=10) as service:
        monkeypatch.setenv("HDET_HOME", str(tmp_path))
        monkeypatch.setenv("HDET_URL", service.url)
        monkeypatch.setenv("HDET_TOKEN", service.token)
        with HDETClient() as client:
            _, run = played(service, client, "long", total_steps=3000)
            run.finish()
            tidied = service.run(Housekeeping(service.controller.store, keep_rounds=10).tidy())
        assert tidied.num_thinned > 0
        outcome = json.loads(done("replay", "long", "--json"))
        assert (outcome["ok"], outcome["step"]) == (True, 3000)
        assert outcome["rounds"] < run.state.round
        assert rounds_in(done("watch", "long"))[-1] == run.state.round - 1


COMMANDS = """
    demo train up down status drain submit jobs watch logs schedule replay report export token backup restore
"""


def test_help_shows_every_command_with_a_sentence() -> None:
    text = done("--help")
    for command in COMMANDS.split():
        assert re.search(rf"^. {command} +\S", text, re.MULTILINE), command
