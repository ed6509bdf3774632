"""A real browser for pages that the library writes: Chromium through Playwright, with the network blocked.

`chromium` is the browser, `page` a fresh page of it, and `traffic` what that page asked for and complained about.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
TIMEOUT = 60_000
"""Milliseconds; a page that is asked for anything waits as long, on a machine that does much else."""


@dataclass(frozen=True)
class Traffic:
    """What a page did beside showing itself.

    Attributes:
        requests: Addresses that it asked for, all refused; neither the page itself nor data inside it.
        errors: Messages of the console's error level and uncaught exceptions.
    """

    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def executable() -> str | None:
    """The first Chrome or Chromium on the path, None without one."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


@pytest.fixture(scope="session")
def chromium() -> Iterator:
    """The browser; tests that need one are skipped visibly where it is missing."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = executable()
    if path is None:
        pytest.skip(f"no browser found: none of {', '.join(NAMES)} is on the path")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def traffic() -> Traffic:
    """What `page` of the same test asks for and complains about."""
    return Traffic()


@pytest.fixture
def page(chromium, traffic) -> Iterator:
    """A page without a network: `page.goto(path.as_uri())`. Every address but its own is refused and recorded."""
    context = chromium.new_context(offline=True, viewport={"width": 1200, "height": 900})
    context.set_default_timeout(TIMEOUT)

    def refuse(route) -> None:
        request = route.request
        if request.url.startswith("file:") and request.is_navigation_request():
            route.continue_()
            return
        traffic.requests.append(request.url)
        route.abort()

    context.route("**/*", refuse)
    page = context.new_page()
    page.on("console", lambda message: traffic.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: traffic.errors.append(str(error)))
    page.on("websocket", lambda socket: traffic.requests.append(socket.url))
    yield page
    context.close()
