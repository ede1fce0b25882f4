"""Where the service is and with which token: what is given, else the environment, else `$HDET_HOME`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from hdet_ray.exceptions import ConfigError
from hdet_service.settings import ClientSettings, load_client_settings

CLUSTER_FILE = "cluster.json"
"""`hdet up` keeps there what it started, with the address under ``url``."""


@dataclass(frozen=True, slots=True)
class Where:
    """An address and the token for it."""

    url: str
    """Without a trailing slash."""
    token: str | None = field(default=None, repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """Headers of every call."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}


def locate(url: str | None = None, token: str | None = None) -> Where:
    """The service's address and token.

    The token file of `$HDET_HOME` counts for the service that was started from there only: no token is
    sent to an address that was named otherwise.

    Raises:
        ConfigError: the address is no http or https URL, or the token holds a blank or a line break.
    """
    settings = load_client_settings()
    local = _local_url(settings)
    named = url or settings.url
    found = _checked_url(named or local)
    secret = settings.token.get_secret_value() if settings.token else None
    if token is None and secret is None and found == _checked_url(local):
        secret = _text_of(settings.home / "token")
    return Where(found, _checked_token(token or secret))


def _local_url(settings: ClientSettings) -> str:
    """Address of the service that belongs to `$HDET_HOME`, whether or not it runs."""
    text = _text_of(settings.home / CLUSTER_FILE)
    if text:
        try:
            state = json.loads(text)
        except ValueError as error:
            raise ConfigError(
                f"{settings.home / CLUSTER_FILE} is no JSON ({error}); `hdet up` writes it anew"
            ) from error
        url = state.get("local_url", state.get("url")) if isinstance(state, dict) else None
        if isinstance(url, str):
            return url
    return settings.default_url


def _checked_url(text: str) -> str:
    try:
        url = httpx.URL(text.strip())
    except httpx.InvalidURL as error:
        raise ConfigError(f"{text!r} is no address ({error}); write it like http://127.0.0.1:8470") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError(f"{text!r} is no http or https address; write it like http://127.0.0.1:8470")
    return str(url).rstrip("/")


def _checked_token(token: str | None) -> str | None:
    if token is not None and (not token.isascii() or not token.isprintable() or " " in token):
        raise ConfigError("the token holds a blank, a line break or a letter that no token has; copy it anew")
    return token or None


def _text_of(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} can't be read ({error}); mend it, or set HDET_URL and HDET_TOKEN"
        ) from error
