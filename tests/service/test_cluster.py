"""What `hdet up` checks and remembers, without starting a Ray."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hdet_ray.exceptions import ConfigError
from hdet_service import actor_control
from hdet_service.client import HDETClient
from hdet_service.cluster import check_port, down, status
from hdet_service.cluster_state import (
    ClusterError,
    NotRunningError,
    PortTakenError,
    Running,
    UnreachableError,
    read_state,
    write_state,
)
from hdet_service.head import Head, free_ports, head_environment
from hdet_service.processes import CLUSTER_MARK, ProcessId, end_marked, marked
from hdet_service.reaching import control_patiently, patiently
from hdet_service.settings import Settings, load_settings

SLEEPS = [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"]


@contextmanager
def ready_listener() -> Iterator[int]:
    """Port of a listener that says 200 to everything."""

    class Ready(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Ready) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def child(**environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has begun to run."""
    process = subprocess.Popen(SLEEPS, env={**os.environ, **environment}, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_settings_come_from_the_environment_and_what_is_given_wins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HDET_HOME", str(tmp_path))
    monkeypatch.setenv("HDET_PORT", "8471")
    monkeypatch.setenv("HDET_ENTRYPOINT_ALLOWLIST", '["byte_*"]')
    assert load_settings().port == 8471
    assert load_settings().entrypoint_allowlist == ("byte_*",)
    assert load_settings(port=8472, host=None).port == 8472
    assert Settings.model_validate_json(load_settings().model_dump_json()) == load_settings()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"port": 12000}, "HDET_PORT.*its workers.*8470"),
        ({"port": 0}, "HDET_PORT"),
        ({"host": "0.0.0.0"}, "insecure-i-know"),
        ({"max_running_jobs": 0}, "HDET_MAX_RUNNING_JOBS"),
        ({"prot": 1}, "PROT"),
    ],
)
def test_a_setting_that_cannot_work_is_named(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_settings(**given)


def test_listening_beyond_loopback_needs_tls_in_front_or_a_word(tmp_path: Path) -> None:
    for consent in ("tls_terminated", "insecure_i_know"):
        assert load_settings(home=tmp_path, host="0.0.0.0", **{consent: True}).host == "0.0.0.0"


def test_a_taken_port_is_refused_and_its_holder_named(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    settings = Settings(home=tmp_path, port=port)
    check_port(settings)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(PortTakenError, match=rf"port {port} is taken by pid {os.getpid()}"):
            check_port(settings)


def test_free_ports_lie_outside_rays_and_the_systems_ranges() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert all(20_000 <= port < 32_000 for port in ports)


def test_what_was_started_is_remembered(tmp_path: Path) -> None:
    head = Head(
        cluster_id="ab", address="127.0.0.1:20000", process=ProcessId(1, 2.5), temp_dir=Path("/tmp/hdet-x")
    )
    running = Running(url="http://x", address=head.address, head=head, settings=Settings(home=tmp_path))
    write_state(running)
    assert read_state(tmp_path) == running
    assert (tmp_path / "cluster.json").stat().st_mode & 0o777 == 0o600


def test_a_file_that_cannot_be_read_is_named_and_nothing_is_ended(tmp_path: Path) -> None:
    (tmp_path / "cluster.json").write_text("{")
    with pytest.raises(ClusterError, match=r"cluster\.json"):
        down(tmp_path)


class SlowHead:
    """Answers after some tries; its clock is the sum of the waits."""

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals
        self.tries = 0
        self.now_s = 0.0

    def ask(self) -> dict[str, object]:
        self.tries += 1
        if self.tries <= self.refusals:
            raise UnreachableError("ConnectionError: no connection")
        return {"is_new": True}

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def test_a_head_that_is_slow_to_answer_is_asked_again_until_it_does() -> None:
    head = SlowHead(refusals=20)
    answer = patiently(head.ask, waiting_for="it", within_s=60.0, clock=lambda: head.now_s, sleep=head.sleep)
    assert answer == {"is_new": True}
    assert head.tries == 21


def test_a_head_that_never_answers_is_given_up_after_the_bound_with_what_was_waited_for() -> None:
    head = SlowHead(refusals=10_000)
    with pytest.raises(ClusterError, match=r"waited 60 s for Ray at here.*ConnectionError: no connection"):
        patiently(
            head.ask, waiting_for="Ray at here", within_s=60.0, clock=lambda: head.now_s, sleep=head.sleep
        )
    assert 60 <= head.now_s < 65


def test_a_head_of_ours_that_has_ended_is_not_waited_for(tmp_path: Path) -> None:
    gone = Head(cluster_id="ab", address="127.0.0.1:1", process=ProcessId(1, 2.5), temp_dir=tmp_path)
    running = Running(url="http://x", address=gone.address, head=gone, settings=Settings(home=tmp_path))
    head = SlowHead(refusals=10_000)
    with pytest.raises(ClusterError, match=r"Ray's head has ended.*head\.log"):
        control_patiently(running, {"action": "status"}, ask=lambda *_: head.ask())
    assert head.tries == 1


@pytest.mark.parametrize("error", [ConnectionError("slow"), RuntimeError("slow"), TimeoutError("slow")])
def test_ray_that_takes_no_connection_is_said_to_be_out_of_reach_and_not_to_refuse(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: str) -> None:
        raise error

    monkeypatch.setattr(actor_control, "_connect", refuse)
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps({"action": "status", "address": "x:1"})))
    assert actor_control.main() == 0
    assert json.loads(capsys.readouterr().out) == {"unreachable": f"{type(error).__name__}: slow"}


def test_the_listener_itself_is_asked_whatever_address_clients_use(tmp_path: Path) -> None:
    with ready_listener() as port:
        settings = Settings(home=tmp_path, port=port, url="https://hdet.invalid")
        write_state(Running(url=settings.public_url, address="127.0.0.1:1", head=None, settings=settings))
        found = status(tmp_path)
    assert (found["url"], found["ready"]) == ("https://hdet.invalid", True)
    assert not status(tmp_path)["ready"]


def test_clients_on_the_same_machine_use_the_listener_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HDET_HOME", str(tmp_path))
    monkeypatch.delenv("HDET_URL", raising=False)
    settings = Settings(
        home=tmp_path, port=8475, host="0.0.0.0", tls_terminated=True, url="https://x.invalid"
    )
    write_state(Running(url=settings.public_url, address="127.0.0.1:1", head=None, settings=settings))
    with HDETClient(token="t") as client:
        assert client.url == "http://127.0.0.1:8475"


def test_where_nothing_was_started_there_is_nothing_to_end(tmp_path: Path) -> None:
    assert not down(tmp_path)
    with pytest.raises(NotRunningError, match="hdet up"):
        status(tmp_path)


def test_a_head_gets_a_token_of_its_own_and_nobody_elses_addresses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "HDET_TOKEN"):
        monkeypatch.setenv(name, "another's")
    environment = head_environment(Settings(home=tmp_path), "ab")
    assert "another's" not in environment.values()
    assert environment["PATH"].startswith(os.path.dirname(sys.executable))
    token = Path(environment["RAY_AUTH_TOKEN_PATH"])
    assert token.stat().st_mode & 0o777 == 0o600
    assert environment["RAY_AUTH_MODE"] == "token"
    again = head_environment(Settings(home=tmp_path), "cd")
    assert Path(again["RAY_AUTH_TOKEN_PATH"]).read_text() == token.read_text()


def test_a_process_is_known_by_its_number_and_its_start() -> None:
    with child() as process:
        known = ProcessId.of(process.pid)
        assert known.is_alive()
        assert not ProcessId(process.pid, known.started_s - 60).is_alive()
        known.terminate()
        assert known.wait(10), "one that has ended and was not waited for counts as gone"


def test_only_what_carries_the_mark_is_ended() -> None:
    mark = f"test-{os.getpid()}"
    with child(**{CLUSTER_MARK: mark}) as ours, child(**{CLUSTER_MARK: f"{mark}-other"}) as other:
        assert [process.pid for process in marked(mark)] == [ours.pid]
        assert end_marked(mark, patience_s=5.0) == 1
        ours.wait(10)
        assert other.poll() is None
