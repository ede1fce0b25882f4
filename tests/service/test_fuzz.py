"""schemathesis, all checks, as every role and as nobody: no undocumented status, no undocumented 5xx."""

from __future__ import annotations

from pathlib import Path

import pytest

from hdet_service.app import described_app
from tests.service.fuzzing import Report, fuzz, fuzz_url
from tests.service.served import served
from tests.service.serving import OPERATOR, SCRAPER, SUBMITTER, VIEWER

CALLERS = [None, SCRAPER, VIEWER, SUBMITTER, OPERATOR]


def _check(report: Report) -> None:
    assert not report.failures, "\n\n".join(report.failures[:5])
    assert not [status for status in report.statuses if status >= 500]


@pytest.mark.timeout(120)
def test_a_few_hundred_requests_get_only_what_is_documented(tmp_path: Path) -> None:
    report = fuzz(tmp_path, SUBMITTER, max_examples=2)
    _check(report)
    assert report.num_cases >= 300


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_500_requests_over_a_socket_get_only_what_is_documented(tmp_path: Path) -> None:
    with served(tmp_path, requests_per_s=1e6, request_burst=1_000_000) as service:
        report = fuzz_url(service.url, service.token, max_examples=2)
    _check(report)
    assert report.num_cases >= 500


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("caller", CALLERS, ids=str)
def test_20000_requests_of_all_roles_get_only_what_is_documented(tmp_path: Path, caller: str | None) -> None:
    report = fuzz(tmp_path, caller, max_examples=250)
    _check(report)
    assert report.num_cases >= 4000  # of each of five callers
    paths = described_app().openapi()["paths"]
    known = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert set(report.operations) == known
