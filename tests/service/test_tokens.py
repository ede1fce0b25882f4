"""Tokens and sessions: made, read from a file, rotated, revoked; a cookie stands for a live token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from hdet_ray.exceptions import ConfigError
from hdet_service.auth import Principal, Role, is_same_digest, new_token, token_digest
from hdet_service.sessions import COOKIE, CSRF_HEADER, LIFETIME_S, Sessions
from hdet_service.store.database import Store
from hdet_service.store.models import Token
from hdet_service.tokens import Tokens, read_tokens_file
from tests.service.serving import OPERATOR, SUBMITTER, VIEWER, Served

SECRET = "s" * 40
OTHER = "t" * 40


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "hdet.sqlite3") as store:
        yield store


def _bootstrap(store: Store, tmp_path: Path, *lines: str) -> tuple[Tokens, str | None]:
    file = tmp_path / "tokens"
    file.write_text("\n".join(lines), encoding="utf-8")
    tokens = Tokens(store)
    return tokens, tokens.bootstrap(tmp_path / "token", file)


def test_a_new_service_has_one_operator_whose_token_is_shown_once(store: Store, tmp_path: Path) -> None:
    tokens = Tokens(store)
    first = tokens.bootstrap(tmp_path / "token", None)
    assert first is not None
    assert tokens.authenticate(first) == Principal("operator", Role.OPERATOR)
    assert (tmp_path / "token").read_text() == first
    assert Tokens(store).bootstrap(tmp_path / "token", None) is None


def test_a_token_has_256_random_bits_and_only_its_hash_is_kept(store: Store, tmp_path: Path) -> None:
    first = Tokens(store).bootstrap(tmp_path / "token", None) or ""
    assert len(first.removeprefix("hdet_")) == 43  # 32 bytes in base64
    assert new_token() != new_token()
    (row,) = store.read_sync(lambda session: session.query(Token).all())
    assert row.digest == token_digest(first)


def test_tokens_of_the_file_are_known_and_no_operator_is_made_beside_one_of_them(
    store: Store, tmp_path: Path
) -> None:
    tokens, first = _bootstrap(
        store, tmp_path, "# a comment", "", f"boss operator {SECRET}", f"ci submitter {OTHER}"
    )
    assert first is None
    assert tokens.authenticate(SECRET) == Principal("boss", Role.OPERATOR)
    assert tokens.authenticate(OTHER) == Principal("ci", Role.SUBMITTER)
    assert not (tmp_path / "token").exists()


def test_a_rotated_secret_takes_the_place_of_the_old_one(store: Store, tmp_path: Path) -> None:
    _bootstrap(store, tmp_path, f"boss operator {SECRET}")
    tokens, _ = _bootstrap(store, tmp_path, f"boss operator {OTHER}")
    assert tokens.authenticate(SECRET) is None
    assert tokens.authenticate(OTHER) == Principal("boss", Role.OPERATOR)


def test_a_revoked_token_does_not_come_back_with_a_restart(store: Store, tmp_path: Path) -> None:
    lines = (f"boss operator {SECRET}", f"ci submitter {OTHER}")
    _bootstrap(store, tmp_path, *lines)

    def revoke(session: Any) -> None:
        session.get(Token, "ci").revoked_s = 1.0

    store.write_sync(revoke)
    tokens, _ = _bootstrap(store, tmp_path, *lines)
    assert tokens.authenticate(OTHER) is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("boss operator", "2 words"),
        (f"boss king {SECRET}", "'king' is unknown"),
        ("boss operator short", "at least 32"),
        (f"boss operator {SECRET}\nboss viewer {OTHER}", "twice"),
    ],
)
def test_a_tokens_file_that_is_none_names_the_line_and_never_the_token(
    tmp_path: Path, line: str, said: str
) -> None:
    file = tmp_path / "tokens"
    file.write_text(line, encoding="utf-8")
    with pytest.raises(ConfigError, match=said) as error:
        read_tokens_file(file)
    assert SECRET not in str(error.value)
    assert "short" not in str(error.value)


def test_a_tokens_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tokens_file"):
        read_tokens_file(tmp_path / "none")


# ---- sessions


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


VERA = Principal("vera", Role.VIEWER)


def test_a_session_ends_with_its_time_and_with_its_token() -> None:
    clock = Clock()
    stamps: dict[Principal, str] = {VERA: "a"}
    sessions = Sessions(b"k" * 32, stamps.get, is_secure=False, clock=clock)
    cookie = sessions.issue(VERA)
    assert sessions.read(cookie) == VERA
    stamps[VERA] = "b"  # rotated
    assert sessions.read(cookie) is None
    stamps.clear()  # revoked
    assert sessions.read(cookie) is None
    stamps[VERA] = "a"
    clock.now += LIFETIME_S
    assert sessions.read(cookie) is None


def test_a_session_goes_on_after_a_restart_and_not_under_another_key() -> None:
    def stamp_of(who: Principal) -> str:
        return "a"

    cookie = Sessions(b"k" * 32, stamp_of, is_secure=False).issue(VERA)
    assert Sessions(b"k" * 32, stamp_of, is_secure=False).read(cookie) == VERA
    assert Sessions(b"x" * 32, stamp_of, is_secure=False).read(cookie) is None


@pytest.mark.parametrize("where", [0, 5, -1, -40])
def test_a_changed_cookie_is_none_of_ours(where: int) -> None:
    sessions = Sessions(b"k" * 32, lambda who: "a", is_secure=False, clock=lambda: 0.0)
    cookie = sessions.issue(VERA)
    letter = "A" if cookie[where] != "A" else "B"
    changed = cookie[:where] + letter + (cookie[where + 1 :] if where != -1 else "")
    assert sessions.read(changed) is None


@pytest.mark.parametrize("cookie", ["", ".", "a.b", "ä.b", "x" * 5000, "bm8.bm8"])
def test_what_is_no_cookie_is_none_of_ours(cookie: str) -> None:
    assert Sessions(b"k" * 32, lambda who: "a", is_secure=False).read(cookie) is None


def test_a_cookie_reads_and_changes_only_with_its_csrf_header(tmp_path: Path) -> None:
    served = Served(tmp_path)
    sessions = served.service.app.state.sessions
    cookie = sessions.issue(Principal(SUBMITTER, Role.SUBMITTER))
    other = sessions.issue(Principal(VIEWER, Role.VIEWER))

    async def ask(method: str, path: str, **headers: str) -> httpx.Response:
        return await served.service.call(
            None, method, path, headers={"Cookie": f"{COOKIE}={cookie}", **headers}
        )

    async def work() -> list[httpx.Response]:
        job_id = await served.service.submit(SUBMITTER)
        cancel = ("POST", f"/v1/jobs/{job_id}/cancel")
        answers = [
            await ask("GET", "/v1/whoami"),
            await ask(*cancel),
            await ask(*cancel, **{CSRF_HEADER: sessions.csrf_token(other)}),
            await ask(*cancel, **{CSRF_HEADER: sessions.csrf_token(cookie)}),
        ]
        await served.service.call(OPERATOR, "DELETE", f"/v1/tokens/{SUBMITTER}")
        return [*answers, await ask("GET", "/v1/whoami")]

    try:
        answers = served.run(work())
        assert [answer.status_code for answer in answers] == [200, 403, 403, 202, 401]
        assert answers[0].json() == {"name": SUBMITTER, "role": "submitter"}
        assert answers[1].json()["type"] == "urn:hdet:problem:csrf"
    finally:
        served.close()


def test_a_lookup_compares_every_hash_whether_or_not_one_fits(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f"t{n} viewer {str(n) * 40}" for n in range(1, 10)]
    tokens, _ = _bootstrap(store, tmp_path, f"a operator {SECRET}", *lines)
    compared: list[str] = []

    def counted(one: str, other: str) -> bool:
        compared.append(one)
        return is_same_digest(one, other)

    monkeypatch.setattr("hdet_service.tokens.is_same_digest", counted)
    assert tokens.authenticate(SECRET) is not None
    found = len(compared)
    assert tokens.authenticate("x" * 40) is None
    assert found == len(compared) - found == 10
