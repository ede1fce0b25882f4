"""The console in a real browser: it follows a run, says when it does not, and is usable without a mouse."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright

from hdet_ray.config import Auto, Fixed
from tests.service.served import PlayedRun, Served, served

CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.fail("no Chromium here: apt-get install --no-install-recommends chromium fonts-dejavu-core")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("console")
    with served(folder, requests_per_s=1e6, request_burst=10**6, max_running_jobs=1000) as service:
        yield service


@pytest.fixture
def context(chromium: Browser) -> Iterator[BrowserContext]:
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(15_000)
    yield context
    context.close()


def new_run(service: Served, name: str, *, num_replicas: int = 3, searches: bool = False) -> PlayedRun:
    body = {"name": name, "entrypoint": "byte_lm", "replicas": {"min": num_replicas, "max": num_replicas}}
    headers = {"Authorization": f"Bearer {service.token}"}
    answer = httpx.post(f"{service.url}/v1/jobs", json=body, headers=headers)
    assert answer.status_code == 201, answer.text
    job_id = answer.json()["id"]
    service.run(service.controller.tick())
    controller = Auto() if searches else Fixed(alpha=1 / 9, sync_every=10)
    return PlayedRun(service, job_id, controller=controller, num_replicas=num_replicas)


def open_job(context: BrowserContext, service: Served, name: str) -> Page:
    """Log in, and open a job from the list."""
    page = context.new_page()
    page.goto(service.url)
    page.get_by_label("Token").fill(service.token)
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("link", name=name, exact=True).click()
    expect(page.locator("#live")).to_have_text("live")
    return page


def tile(page: Page, name: str) -> Locator:
    """The value that stands below a name."""
    named = page.locator("dt", has_text=re.compile(f"^{name}$"))
    return page.locator(".tiles div", has=named).locator("dd").first


def test_a_page_follows_its_run_and_says_when_it_has_ended(context: BrowserContext, service: Served) -> None:
    run = new_run(service, "followed")
    run.advance(3)
    page = open_job(context, service, "followed")
    expect(tile(page, "round")).to_have_text("3")
    page.locator("#chart-losses .canvas").focus()
    run.advance(2)
    expect(tile(page, "round")).to_have_text("5")
    assert page.evaluate("document.activeElement.closest('figure').id") == "chart-losses"
    run.finish()
    expect(page.locator("#live")).to_have_text("ended")
    expect(page.locator(".heading .state")).to_have_text("SUCCEEDED")


def test_the_list_follows_its_jobs(context: BrowserContext, service: Served) -> None:
    page = context.new_page()
    page.goto(service.url)
    page.get_by_label("Token").fill(service.token)
    page.keyboard.press("Enter")
    expect(page.locator("#live")).to_have_text("live")
    new_run(service, "just-submitted").advance(2)
    row = page.get_by_role("row").filter(has_text="just-submitted")
    expect(row).to_contain_text("20 of 900 steps")


def test_a_page_that_is_cut_off_says_so_and_catches_up(context: BrowserContext, service: Served) -> None:
    run = new_run(service, "cut")
    run.advance(1)
    page = open_job(context, service, "cut")
    context.set_offline(True)
    expect(page.locator("#live")).to_have_text("offline")
    run.advance(2)
    expect(tile(page, "round")).to_have_text("1")
    context.set_offline(False)
    expect(page.locator("#live")).to_have_text("live")
    expect(tile(page, "round")).to_have_text("3")


def test_a_page_whose_service_is_away_says_that_it_tries_again(
    context: BrowserContext, service: Served
) -> None:
    run = new_run(service, "away")
    run.advance(1)
    page = open_job(context, service, "away")
    page.route("**/live", lambda route: route.abort())
    service.run(_end_streams(service))
    expect(page.locator("#live")).to_have_text("reconnecting")
    run.advance(1)
    page.unroute("**/live")
    expect(page.locator("#live")).to_have_text("live")
    expect(tile(page, "round")).to_have_text("2")


def test_a_page_whose_token_was_revoked_says_that_it_is_logged_out(
    context: BrowserContext, service: Served
) -> None:
    run = new_run(service, "revoked")
    run.advance(1)
    headers = {"Authorization": f"Bearer {service.token}"}
    made = httpx.post(f"{service.url}/v1/tokens", json={"name": "vera", "role": "viewer"}, headers=headers)
    page = context.new_page()
    page.goto(service.url)
    page.get_by_label("Token").fill(made.json()["token"])
    page.keyboard.press("Enter")
    page.get_by_role("link", name="revoked", exact=True).click()
    expect(page.locator("#live")).to_have_text("live")
    httpx.delete(f"{service.url}/v1/tokens/vera", headers=headers).raise_for_status()
    run.advance(1)
    expect(page.locator("#live")).to_have_text("logged out")


def test_ages_go_on_while_nothing_happens(context: BrowserContext, service: Served) -> None:
    new_run(service, "quiet").advance(1)
    page = context.new_page()
    page.clock.install()
    page.goto(service.url)
    page.get_by_label("Token").fill(service.token)
    page.keyboard.press("Enter")
    page.get_by_role("link", name="quiet", exact=True).click()
    expect(tile(page, "last report")).to_contain_text(re.compile("just now|s ago"))
    page.clock.fast_forward(125_000)
    expect(tile(page, "last report")).to_have_text("2 min ago")


def test_charts_are_read_off_by_keyboard_and_by_pointer(context: BrowserContext, service: Served) -> None:
    new_run(service, "read-off", searches=True).advance(7)
    page = open_job(context, service, "read-off")
    chart, tip = page.locator("#chart-rates .canvas"), page.locator(".tip")
    chart.focus()
    page.keyboard.press("Home")
    expect(tip).to_contain_text("step 0 · round 0 · scout")
    page.keyboard.press("ArrowRight")
    expect(tip).not_to_contain_text("step 0 ·")
    page.keyboard.press("Escape")
    expect(tip).to_be_hidden()
    page.locator("#chart-losses .canvas").hover(position={"x": 5, "y": 100})
    expect(tip).to_contain_text("round 0 · scout")
    expect(tip).to_contain_text("lowest")


def test_everything_is_reached_by_keyboard_in_the_order_of_the_page(
    context: BrowserContext, service: Served
) -> None:
    new_run(service, "keys").advance(2)
    page = open_job(context, service, "keys")
    page.evaluate("document.activeElement.blur()")
    reached = []
    for _ in range(30):
        page.keyboard.press("Tab")
        name = page.evaluate(
            "(e => e.closest('figure')?.id ?? e.getAttribute('aria-label') ?? e.textContent.trim())"
            "(document.activeElement)"
        )
        if name in reached:
            break
        reached.append(name)
    expected = ["Skip to the content", "HDET", "Jobs", "Log out", "chart-rates", "chart-losses", "Replicas"]
    assert [name for name in reached if name in expected] == expected


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1440])
def test_a_page_fits_its_window_in_light_and_dark(
    chromium: Browser, service: Served, width: int, scheme: str
) -> None:
    name = f"fits-{width}-{scheme}"
    new_run(service, name, num_replicas=20, searches=True).advance(6)
    context = chromium.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = open_job(context, service, name)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    text = page.evaluate("getComputedStyle(document.querySelector('.x-labels text')).fontSize")
    assert float(text.removesuffix("px")) > 11  # a chart stretches, its labels don't
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in ground.removeprefix("rgb(").removesuffix(")").split(",")) / 3
    assert brightness > 200 if scheme == "light" else brightness < 60
    context.close()


def test_a_page_asks_no_other_host_and_breaks_none_of_its_own_rules(
    context: BrowserContext, service: Served, tmp_path: Path
) -> None:
    new_run(service, "alone", searches=True).advance(7)
    asked: list[str] = []
    complaints: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    context.on("console", lambda message: complaints.append(message.text))
    context.on("weberror", lambda error: complaints.append(str(error.error)))
    page = open_job(context, service, "alone")
    page.locator("#chart-rates .canvas").hover()
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert asked
    assert all(url.startswith(service.url) for url in asked)
    assert complaints == []


async def _end_streams(service: Served) -> None:
    for subscription in tuple(service.controller.events._subscriptions):
        subscription.close()
    await asyncio.sleep(0)
