"""Kept output: a copy that grows with its source, and is read by position."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hdet_ray.exceptions import ConfigError
from hdet_service.logs import LOG_START, LogPosition, Logs
from hdet_service.starter import DriverState, DriverStatus

JOB = "01JQ0000000000000000000001"
SID = f"hdet-{JOB}-1"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "session" / f"job-driver-{SID}.log"


@pytest.fixture
def logs(tmp_path: Path, source: Path) -> Logs:
    source.parent.mkdir()
    return Logs(tmp_path / "logs", max_bytes=1 << 20)


def text_of(logs: Logs, **how: bool) -> list[str]:
    return [line.text for line in logs.read(JOB, **how)]


def test_output_outlives_its_source(logs: Logs, source: Path) -> None:
    source.write_text("one\ntwo\n")
    logs.copy(SID, source)
    source.unlink()
    assert text_of(logs) == ["one", "two"]


def test_only_what_is_new_is_copied_also_by_a_successor(logs: Logs, source: Path, tmp_path: Path) -> None:
    source.write_text("one\n")
    assert logs.copy(SID, source) == 4
    with source.open("a") as stream:
        stream.write("two\n")
    successor = Logs(tmp_path / "logs", max_bytes=1 << 20)
    assert successor.copy(SID, source) == 4
    assert successor.copy(SID, source) == 0
    assert text_of(successor) == ["one", "two"]


@pytest.mark.parametrize("after", ["new\n", "another beginning of the same length\nnew\n"])
def test_a_source_that_was_replaced_is_copied_below_a_line_that_says_so(
    logs: Logs, source: Path, after: str
) -> None:
    source.write_text("one of the old lines\n")
    logs.copy(SID, source)
    source.write_text(after)
    logs.copy(SID, source)
    logs.copy(SID, source)
    lines = [line for line in text_of(logs) if line]
    assert lines[0] == "one of the old lines"
    assert "was replaced" in lines[1]
    assert lines[2:] == after.splitlines()


def test_output_above_the_cap_is_left_out_and_a_line_says_so(tmp_path: Path, source: Path) -> None:
    source.parent.mkdir()
    source.write_bytes(b"x" * 99 + b"\n" + b"y" * 1000)
    logs = Logs(tmp_path / "logs", max_bytes=100)
    logs.copy(SID, source)
    logs.copy(SID, source)
    lines = [line for line in text_of(logs, is_final=True) if line]
    assert lines[0] == "x" * 99
    assert "left out" in lines[1]
    assert len(lines) == 2
    assert logs.has_all(SID, source)


def test_a_line_that_is_still_being_written_is_not_shown_until_it_ends(logs: Logs, source: Path) -> None:
    source.write_text("one\ntw")
    logs.copy(SID, source)
    assert text_of(logs) == ["one"]
    assert text_of(logs, is_final=True) == ["one", "tw"]
    with source.open("a") as stream:
        stream.write("o\n")
    logs.copy(SID, source)
    assert text_of(logs) == ["one", "two"]


def test_drivers_follow_each_other_in_order(logs: Logs, source: Path) -> None:
    for submission in (1, 2, 10):
        source.write_text(f"driver {submission}, no end of line")
        logs.copy(f"hdet-{JOB}-{submission}", source)
    assert text_of(logs, is_final=True) == [f"driver {n}, no end of line" for n in (1, 2, 10)]
    assert [line.submission for line in logs.read(JOB, is_final=True)] == [1, 2, 10]


@given(
    parts=st.lists(st.text(st.characters(exclude_characters="\r", codec="utf-8"), max_size=40), max_size=8),
    limit=st.integers(1, 5),
)
def test_pages_in_any_size_give_each_line_once(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str], limit: int
) -> None:
    folder = tmp_path_factory.mktemp("logs")
    source = folder / "source"
    logs = Logs(folder / "kept", max_bytes=1 << 20)
    source.touch()
    seen: list[str] = []
    position = LOG_START
    for part in parts:
        with source.open("ab") as stream:
            stream.write(part.encode() + b"\n")
        logs.copy(SID, source)
        while page := logs.read(JOB, position, limit=limit):
            assert len(page) <= limit
            position = LogPosition.parse(str(page[-1].position))
            seen += [line.text for line in page]
    assert seen == [line for part in parts for line in part.split("\n")]


def test_a_very_long_line_comes_in_pieces_that_cut_no_character(logs: Logs, source: Path) -> None:
    long = "a" + "é" * 100_000
    source.write_text(long + "\n")
    logs.copy(SID, source)
    pieces = text_of(logs)
    assert len(pieces) > 1
    assert "".join(pieces) == long


def test_a_position_that_is_none_is_refused() -> None:
    for text in ("", "1", "a:b", "1:-1", "1:2:3", "²:1"):
        with pytest.raises(ConfigError, match="position"):
            LogPosition.parse(text)


def test_deleted_output_is_not_copied_again_while_its_driver_still_writes(logs: Logs, source: Path) -> None:
    source.write_text("one\n")
    logs.copy_all({SID: DriverState(status=DriverStatus.RUNNING, log_path=source)})
    logs.delete(JOB)
    logs.copy_all({SID: DriverState(status=DriverStatus.RUNNING, log_path=source)})
    assert logs.submissions(JOB) == []


def test_the_last_line_is_what_a_person_would_look_at(logs: Logs, source: Path) -> None:
    assert logs.last_line(JOB, 1) == ""
    source.write_text("Traceback …\nValueError: lr is negative\n\n  \n")
    logs.copy(SID, source)
    assert logs.last_line(JOB, 1) == "ValueError: lr is negative"
