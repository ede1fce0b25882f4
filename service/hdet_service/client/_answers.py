"""What an HTTP answer means: the JSON, or the error that its problem document stands for."""

from __future__ import annotations

from typing import Any

import httpx

from hdet_service.client._errors import ClientError, Problem, UnexpectedAnswer, Unreachable, refusal
from hdet_service.client._retries import retry_after_s

_KNOWN = frozenset({"type", "title", "status", "detail", "errors", "instance"})


def content_of(response: httpx.Response) -> Any:
    """The JSON of a good answer whose body was read; None where it has no body.

    Raises:
        Refused: the status is 400 or above; the kind follows the status.
        UnexpectedAnswer: it is no JSON, or a redirect.
    """
    raise_for(response)
    if response.status_code == 204 or not response.content:
        return None
    try:
        return response.json()
    except ValueError as error:
        kind = response.headers.get("content-type", "no content type")
        raise UnexpectedAnswer(
            f"{response.url} answered {response.status_code} with {kind} instead of JSON; "
            "check that HDET_URL leads to an hdet controller"
        ) from error


def raise_for(response: httpx.Response) -> None:
    """Nothing for a good answer.

    Raises:
        Refused: the status is 400 or above.
        UnexpectedAnswer: a redirect: the client follows none, since a token must not travel elsewhere.
    """
    if response.is_success:
        return
    if response.status_code < 400:
        raise UnexpectedAnswer(
            f"{response.url} redirects to {response.headers.get('location')}; "
            "put the address that it leads to in HDET_URL"
        )
    wait = retry_after_s(response.headers.get("retry-after"))
    raise refusal(problem_of(response), retry_after_s=wait)


def problem_of(response: httpx.Response) -> Problem:
    """The problem document of an answer; made up from the status where the body is none."""
    try:
        document = response.json()
    except ValueError:
        document = None
    if not isinstance(document, dict):
        title = f"{response.status_code} {response.reason_phrase}"
        return Problem(status=response.status_code, title=title, detail=f"{response.url} answered {title}")
    fields = document.get("errors")
    return Problem(
        status=response.status_code,
        type=str(document.get("type", "about:blank")),
        title=str(document.get("title", "")),
        detail=str(document.get("detail") or ""),
        errors=tuple(
            (str(item.get("field", "")), str(item.get("message", "")))
            for item in (fields if isinstance(fields, list) else [])
            if isinstance(item, dict)
        ),
        extra={name: value for name, value in document.items() if name not in _KNOWN},
    )


def broken(error: httpx.TransportError, url: str, *, may_have_happened: bool) -> ClientError:
    """The error of a call that got no answer."""
    if isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError):
        return UnexpectedAnswer(f"can't call {url}: {error}")
    what = "timed out" if isinstance(error, httpx.TimeoutException) else (str(error) or type(error).__name__)
    text = f"no answer from {url} ({what}); is the controller up? `hdet status` tells, `hdet up` starts one"
    if may_have_happened:
        text = (
            f"the connection to {url} broke before the answer ({what}): the change may have been made; "
            "look before you repeat it"
        )
    return Unreachable(text)


def was_sent(error: httpx.TransportError) -> bool:
    """Whether the request may have reached the service."""
    return not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)


def not_a_stream(url: str, error: Exception) -> UnexpectedAnswer:
    """The error of an answer that should have been a stream of events."""
    return UnexpectedAnswer(f"{url} answered with no event stream ({error}); a proxy may stand in between")
