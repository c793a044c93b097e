"""The docs page in a real browser: it shows every operation, asks no other host, and its policy holds."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Error, Page, Request, expect, sync_playwright

from tests.support.server import OPERATOR_TOKEN, ServerProcess

WATCH_POLICY = (
    "addEventListener('securitypolicyviolation', event => { (window.refused ??= []).push(event.blockedURI) })"
)
FETCH = "url => fetch(url).then(() => 'answered', () => 'refused')"
ELSEWHERE = "http://127.0.0.1:9/elsewhere"


@dataclass
class Watch:
    """What a page did: the hosts it asked, and what went wrong."""

    hosts: set[str] = field(default_factory=set)
    complaints: list[str] = field(default_factory=list)

    def request(self, request: Request) -> None:
        url = urlsplit(request.url)
        if url.scheme != "data":
            self.hosts.add(url.netloc)

    def console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.complaints.append(message.text)

    def failed(self, request: Request) -> None:
        self.complaints.append(f"{request.url}: {request.failure}")

    def page_error(self, error: Error) -> None:
        self.complaints.append(str(error))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server on SQLite: the page does not depend on the database."""
    folder = tmp_path_factory.mktemp("server")
    process = ServerProcess(f"sqlite:///{folder}/fedquorum.db", folder).start()
    yield process
    process.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium of the system; only a developer's machine may do without."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("CI needs a chromium on the path (Debian: apt-get install chromium)")
        pytest.skip("no chromium on the path (Debian: apt-get install chromium)")
    # Chromium's sandbox refuses to start for root, as which containers often run.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def page(browser: Browser, server: ServerProcess, watch: Watch) -> Iterator[Page]:
    """The docs page, shown and watched."""
    opened = browser.new_page(viewport={"width": 1200, "height": 1000})
    opened.add_init_script(WATCH_POLICY)
    opened.on("request", watch.request)
    opened.on("console", watch.console)
    opened.on("requestfailed", watch.failed)
    opened.on("pageerror", watch.page_error)
    opened.goto(f"{server.url}/docs")
    expect(opened.get_by_text("Claim a task")).to_be_visible(timeout=20_000)
    yield opened
    opened.close()


def test_the_page_shows_every_operation_and_asks_no_other_host(
    page: Page, server: ServerProcess, watch: Watch, tmp_path: Path
) -> None:
    with server.http(token=None) as http:
        document = http.get("/openapi.json").json()
    summaries = [operation["summary"] for path in document["paths"].values() for operation in path.values()]
    assert len(summaries) > 20
    for summary in summaries:
        expect(page.get_by_text(summary, exact=True).first).to_be_visible()
    tags = page.locator(".opblock-tag").evaluate_all("tags => tags.map(tag => tag.dataset.tag)")
    assert (tags[:4], tags[-1]) == (["runs", "privacy", "clients", "tasks"], "operations")
    shown = page.locator(".opblock-summary-description").all_text_contents()
    in_order = ["List runs", "Claim a task", "Send an update", "List model versions"]
    assert sorted(in_order, key=shown.index) == in_order
    page.get_by_text("Claim a task").click()
    expect(page.get_by_text("The task this client already holds")).to_be_visible()
    picture = tmp_path / "docs.png"
    page.screenshot(path=picture, full_page=True)
    assert picture.stat().st_size > 20_000
    assert watch.hosts == {urlsplit(server.url).netloc}
    assert watch.complaints == []
    assert page.evaluate("window.refused") is None


def test_a_call_can_be_tried_from_the_page(page: Page, server: ServerProcess, watch: Watch) -> None:
    page.get_by_role("button", name="Authorize").first.click()
    page.locator(".auth-container input").fill(OPERATOR_TOKEN)
    page.locator(".auth-btn-wrapper .authorize").click()
    page.locator(".auth-btn-wrapper .btn-done").click()
    page.get_by_text("List runs", exact=True).click()
    page.get_by_role("button", name="Execute").click()
    expect(page.locator(".live-responses-table .response-col_status").get_by_text("200")).to_be_visible()
    expect(page.locator(".live-responses-table")).to_contain_text("next_cursor")
    assert watch.hosts == {urlsplit(server.url).netloc}
    assert watch.complaints == []


def test_the_policy_keeps_the_page_from_asking_another_host(page: Page, watch: Watch) -> None:
    before = set(watch.hosts)
    assert page.evaluate(FETCH, "/healthz") == "answered"
    assert page.evaluate(FETCH, ELSEWHERE) == "refused"
    page.wait_for_function("window.refused !== undefined")
    assert page.evaluate("window.refused") == [ELSEWHERE]
    assert watch.hosts - before <= {urlsplit(ELSEWHERE).netloc}


def test_the_page_may_not_be_framed_or_guessed_at(server: ServerProcess) -> None:
    answer = httpx.get(f"{server.url}/docs", trust_env=False)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "//" not in policy
