"""Is the controller quick enough to be asked at every boundary, and does it stay so with full tables?

- `exchange_p99_ratio`: 16 jobs on real Ray, each exchanging with the controller's actor and, in turn, calling
  a bare actor that does one `fsync`: the ratio of the two 99th percentiles, to stay at or below 3.
- `jobs_page_p99_ms` (below 50) and `metrics_median_ms` (below 300): real HTTP with 1,000 jobs and 1,000,000
  rounds stored, 64 of the jobs running, one of those with 1,024 replicas.
- `wide_exchange_ms`: a whole exchange (decide, plan, store) with 1,024 replicas, median below 20.
- `memory_growth_mib`: resident memory gained from the first tenth of 100,000 exchanges to the end.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import resource
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import ray
import uvicorn

from benchmarks.measure import print_table, quantile, summary, write_result
from benchmarks.played_runs import PlayedRun
from hdet_service.actor import listening_socket
from hdet_service.app import create_app
from hdet_service.controller import Controller, create_controller
from hdet_service.settings import Settings
from hdet_service.starter import RecordingStarter
from hdet_service.store.database import Store
from hdet_service.store.models import Job

NUM_JOBS = 16
PAUSE_S = 0.25
"""Between two calls of a job: sixteen of them make about 60 a second."""
STORED_JOBS = 1_000
RUNNING_JOBS = 64
WIDE_REPLICAS = 1_024
SPEC = {"name": "bench", "entrypoint": "byte_lm", "replicas": {"min": 4, "max": 4}}
BOUNDS = {
    "exchange_p99_ratio": 3.0,
    "jobs_page_p99_ms": 50.0,
    "metrics_median_ms": 300.0,
    "wide_exchange_ms": 20.0,
}


class Hosted:
    """The controller without HTTP, as a Ray actor."""

    async def __init__(self, home: str) -> None:  # type: ignore[misc]  # Ray awaits it
        self._controller = create_controller(Settings(home=Path(home)), RecordingStarter())
        await self._controller.start()

    async def add(self, jobs: list[str]) -> None:
        """Jobs whose drivers run."""
        await self._controller.store.write(lambda session: session.add_all(map(running_job, jobs)))

    async def call(self, kind: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """What training says."""
        return await self._controller.call(kind, request)


class Bare:
    """What no controller can do without: a call, and one block on the disk."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)

    def call(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The smallest answer that is true."""
        os.write(self._file, bytes(4096))
        os.fsync(self._file)
        return {"status": "ok", "round": request["round"]}


def running_job(id: str) -> Job:
    """A row as the life of jobs leaves it while a driver runs."""
    return Job(
        id=id,
        name="bench",
        owner="bench",
        spec=SPEC,
        state="RUNNING",
        reason="Running",
        created_s=time.time(),
        updated_s=time.time(),
        submission=1,
    )


def job_id(number: int) -> str:
    """A ULID-shaped id."""
    return f"{number:026d}"


def measure_exchange(folder: Path, calls: int) -> dict[str, Any]:
    """Latencies of both calls under the load of all jobs at once."""
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, _temp_dir=str(folder / "ray"))
    try:
        hosted = ray.remote(num_cpus=0, max_concurrency=100)(Hosted).remote(str(folder / "home"))
        bare = ray.remote(num_cpus=0)(Bare).remote(str(folder / "bare"))
        runs = [PlayedRun(job_id(n), 4) for n in range(NUM_JOBS)]
        ray.get(hosted.add.remote([run.job for run in runs]))
        for run in runs:
            ray.get(hosted.call.remote("open", run.opening()))
        seconds: dict[str, list[float]] = {"exchange": [], "bare": []}
        lock = threading.Lock()

        def one_job(run: PlayedRun, seed: int) -> None:
            pauses = random.Random(seed)
            for number in range(-5, calls):
                request = run.next_request()
                taken = {}
                for name in ("exchange", "bare") if number % 2 else ("bare", "exchange"):
                    time.sleep(pauses.uniform(0, 2 * PAUSE_S))
                    began = time.perf_counter()
                    if name == "exchange":
                        answer = ray.get(hosted.call.remote("exchange", request))
                    else:
                        ray.get(bare.call.remote(request))
                    taken[name] = time.perf_counter() - began
                run.take(answer)
                if number >= 0:
                    with lock:
                        for name, elapsed in taken.items():
                            seconds[name].append(elapsed)

        threads = [threading.Thread(target=one_job, args=(run, n)) for n, run in enumerate(runs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        ray.shutdown()
    figures: dict[str, Any] = {
        name: {**summary(values), "p99": quantile(values, 0.99)} for name, values in seconds.items()
    }
    return figures | {"exchange_p99_ratio": figures["exchange"]["p99"] / figures["bare"]["p99"]}


async def measure_wide(folder: Path, exchanges: int) -> dict[str, float]:
    """Seconds of exchanges of one job with many replicas."""
    controller = create_controller(Settings(home=folder), RecordingStarter())
    try:
        seconds = await exchange_alone(controller, PlayedRun(job_id(1), WIDE_REPLICAS), exchanges)
    finally:
        controller.store.close()
    return summary([1e3 * s for s in seconds])


async def exchange_alone(
    controller: Controller, run: PlayedRun, exchanges: int, each: Callable[[int], None] = lambda _: None
) -> list[float]:
    """Let one new job exchange so often; seconds of each answer."""
    await controller.store.write(lambda session: session.add(running_job(run.job)))
    await controller.call("open", run.opening())
    seconds = []
    for number in range(exchanges):
        request = run.next_request()
        began = time.perf_counter()
        answer = await controller.call("exchange", request)
        seconds.append(time.perf_counter() - began)
        run.take(answer)
        each(number)
    return seconds


async def measure_memory(folder: Path, exchanges: int) -> dict[str, Any]:
    """Resident memory along many exchanges of one job."""
    controller = create_controller(Settings(home=folder), RecordingStarter())
    resident: list[tuple[int, float]] = []

    def look(number: int) -> None:
        if (number + 1) % (exchanges // 10) == 0:
            gc.collect()
            resident.append((number + 1, resident_mib()))

    try:
        await exchange_alone(controller, PlayedRun(job_id(1), 4), exchanges, look)
    finally:
        controller.store.close()
    return {
        "exchanges": exchanges,
        "resident_mib": dict(resident),
        "memory_growth_mib": resident[-1][1] - resident[0][1],
    }


def resident_mib() -> float:
    """This process's resident memory now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * resource.getpagesize() / 2**20


def fill(path: Path, num_rounds: int) -> None:
    """Finished jobs with their rounds, written below the models: quickly."""
    finished = [job_id(n) for n in range(STORED_JOBS - RUNNING_JOBS)]
    per_job = num_rounds // len(finished)
    item = '{"attempt": 1, "report": "' + "x" * 400 + '"}'
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executemany(
            "INSERT INTO jobs (id, name, owner, state, reason, message, priority, created_s, updated_s,"
            " version, submission, failures, attempt, round, step, replicas_present, revision, finished_s,"
            " spec) VALUES"
            " (?, 'bench', 'bench', 'SUCCEEDED', 'Completed', '', 0, 0, 0, 1, 1, 0, 1, ?, 0, 0, 0, 1, ?)",
            [(id, per_job, json.dumps(SPEC)) for id in finished],
        )
        connection.executemany(
            "INSERT INTO rounds (job_id, attempt, round, item, at_s, is_abandoned, is_thinned)"
            " VALUES (?, 1, ?, ?, 0, 0, 0)",
            ((id, round, item) for id in finished for round in range(per_job)),
        )


async def measure_http(folder: Path, num_rounds: int, requests: int) -> dict[str, Any]:
    """Milliseconds of pages and scrapes over HTTP, with full tables."""
    settings = Settings(home=folder, requests_per_s=1e6, request_burst=1_000_000)
    settings.home.mkdir(parents=True, exist_ok=True)
    Store.open(settings.database_path).close()
    fill(settings.database_path, num_rounds)
    controller = create_controller(settings, RecordingStarter())
    for n in range(RUNNING_JOBS):
        run = PlayedRun(job_id(STORED_JOBS + n), WIDE_REPLICAS if n == 0 else 8)
        await exchange_alone(controller, run, 3)
    app = create_app(controller)
    with listening_socket(settings.model_copy(update={"port": 0})) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        token = (settings.home / "token").read_text(encoding="utf-8").strip()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            figures = await asyncio.to_thread(ask, url, token, requests)
        finally:
            server.should_exit = True
            await serving
            controller.store.close()
    return figures


def ask(url: str, token: str, requests: int) -> dict[str, Any]:
    """Walk the pages of jobs and scrape, one request after another."""
    pages_ms: list[float] = []
    scrapes_ms: list[float] = []
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=60) as client:
        cursor: str | None = None
        for number in range(-3, requests):
            began = time.perf_counter()
            answer = client.get("/v1/jobs", params={"limit": 50} | ({"cursor": cursor} if cursor else {}))
            elapsed_ms = 1e3 * (time.perf_counter() - began)
            answer.raise_for_status()
            cursor = answer.json().get("next")
            if number >= 0:
                pages_ms.append(elapsed_ms)
        for number in range(-1, max(requests // 10, 5)):
            began = time.perf_counter()
            answer = client.get("/metrics")
            elapsed_ms = 1e3 * (time.perf_counter() - began)
            answer.raise_for_status()
            if number >= 0:
                scrapes_ms.append(elapsed_ms)
    return {
        "jobs_page_ms": {**summary(pages_ms), "p99": quantile(pages_ms, 0.99)},
        "metrics_ms": summary(scrapes_ms),
        "metrics_bytes": len(answer.content),
        "jobs_page_p99_ms": quantile(pages_ms, 0.99),
        "metrics_median_ms": summary(scrapes_ms)["median"],
    }


def main() -> None:
    """Measure, print tables, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="a twentieth of it, and no file without --output"
    )
    parser.add_argument("--output", type=Path, default=None, help="the JSON file to write")
    arguments = parser.parse_args()
    share = 20 if arguments.quick else 1

    payload: dict[str, Any] = {"bounds": BOUNDS, "jobs": NUM_JOBS, "pause_s": PAUSE_S}
    with tempfile.TemporaryDirectory(prefix="hb-") as name:
        folder = Path(name)
        payload |= measure_exchange(folder, 400 // share)
        wide = asyncio.run(measure_wide(folder / "wide", 400 // share))
        payload |= {"wide_ms": wide, "wide_exchange_ms": wide["median"], "wide_replicas": WIDE_REPLICAS}
        payload |= {"stored_jobs": STORED_JOBS, "stored_rounds": 1_000_000 // share}
        payload |= asyncio.run(measure_http(folder / "http", 1_000_000 // share, 500 // share))
        payload |= asyncio.run(measure_memory(folder / "memory", 100_000 // share))

    columns = ["median", "p90", "p99", "max", "n"]
    rows = [
        [
            name,
            *(1e3 * payload[name][column] if column != "n" else payload[name][column] for column in columns),
        ]
        for name in ("exchange", "bare")
    ]
    print_table(f"{NUM_JOBS} jobs at once, milliseconds a call", ["", *columns], rows)
    figures = [[name, payload[name], bound] for name, bound in BOUNDS.items()]
    print_table("against the bounds", ["", "measured", "at most"], figures)
    print_table(
        f"resident memory along {payload['exchanges']:,} exchanges",
        ["exchanges", "MiB"],
        [[str(number), mib] for number, mib in payload["resident_mib"].items()],
    )
    if arguments.output or not arguments.quick:
        print(f"\nwritten to {write_result('controller', payload, arguments.output)}")


if __name__ == "__main__":
    main()
