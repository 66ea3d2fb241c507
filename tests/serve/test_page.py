"""The search page in a headless Chromium: searching, the tree, the address, and what it looks like where."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from math import exp
from typing import Any

import pytest
from fastapi import Request
from fastapi.responses import JSONResponse

from serve.api import Unavailable
from tests.serve.toy import DOCUMENTS, ToyBackend, served
from zerogr.client import Client
from zerogr.decoding import STRATEGIES
from zerogr.search.record import Branch

webdriver = pytest.importorskip("selenium.webdriver", reason="the page is driven by selenium")
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="there is no chromium with its chromedriver"),
]
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
).split()
WAIT_S = 90
CONTRAST = """
const channels = (color) => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  canvas.fillStyle = color;
  canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const luminance = ([r, g, b]) => [r, g, b].map((each) => each / 255)
  .map((each) => each <= .03928 ? each / 12.92 : ((each + .055) / 1.055) ** 2.4)
  .reduce((sum, each, at) => sum + each * [.2126, .7152, .0722][at], 0);
const behind = (node) => {
  const color = channels(getComputedStyle(node).backgroundColor);
  return color[3] > 0 || !node.parentElement ? color : behind(node.parentElement);
};
return [...document.querySelectorAll("body *")]
  .filter((node) => node.checkVisibility() && [...node.childNodes].some((each) => each.nodeType === 3 && each.data.trim()))
  .filter((node) => !node.closest("noscript, option, .hidden, script, style"))
  .map((node) => {
    const [a, b] = [luminance(channels(getComputedStyle(node).color)), luminance(behind(node))];
    return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), node.className, node.textContent.slice(0, 30)];
  });
"""
"""Returns the contrast of every visible text, its class and its beginning."""


class Page:
    """What a person does and sees."""

    def __init__(self, driver: Any, backend: ToyBackend, url: str) -> None:
        self.driver, self.backend, self.url = driver, backend, url

    def open(self, address: str = "") -> None:
        self.driver.get(f"{self.url}/{address}")

    def one(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        return self.driver.execute_script(
            "return [...document.querySelectorAll(arguments[0])].filter((e) => e.checkVisibility()).map((e) => e.textContent)",
            selector,
        )

    def until(self, holds: Callable[[], Any]) -> Any:
        return WebDriverWait(self.driver, WAIT_S, poll_frequency=0.05).until(lambda _: holds())

    def settles(self, status: str) -> None:
        self.until(lambda: status in self.one("#status").text)

    def search(self, query: str) -> None:
        box = self.one("#query")
        box.clear()
        box.send_keys(query, Keys.ENTER)

    def opens_tree(self, selector: str = ".tree .row") -> None:
        self.one("#how > summary").send_keys(Keys.ENTER)
        self.until(lambda: self.texts(selector))

    def fits(self) -> bool:
        return self.driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")

    def looks(self, *, width: int = 1280, scheme: str = "light") -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def service() -> Iterator[tuple[ToyBackend, str]]:
    backend = ToyBackend()
    with served(backend) as url:
        yield backend, url


@pytest.fixture
def page(driver: Any, service: tuple[ToyBackend, str]) -> Iterator[Page]:
    backend, url = service
    backend.requests.clear()
    page = Page(driver, backend, url)
    page.looks()
    yield page
    complaints = [entry for entry in driver.get_log("browser") if "Content Security Policy" in entry["message"]]
    assert not complaints
    loaded = driver.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert all(name.startswith((page.url, "data:")) for name in loaded), "nothing comes from elsewhere"


def winning(branch: Branch) -> list[Branch]:
    """Returns the branches towards the first hit."""
    path = []
    while branch.children:
        branch = next(child for child in branch.children if child.best_rank == 1)
        path.append(branch)
    return path


class TestSearching:
    def test_a_query_is_answered(self, page: Page) -> None:
        page.open()
        page.until(lambda: "12 documents · Find the report" in page.one("#about").text)
        assert "writes the identifier of a document, token by token" in " ".join(page.one(".lead").text.split())
        assert not page.one("#how").is_displayed()
        page.search("wing lift")
        page.settles("5 documents in")
        [hit, *_] = Client(page.url).search("wing lift").hits
        first = page.one("#hits > li")
        assert [first.find_element(By.CLASS_NAME, name).text for name in ("rank", "title", "text", "docid", "doc-id")] == [
            "1.", hit.title, hit.text, hit.docid, hit.doc_id,
        ]  # fmt: skip
        assert first.find_element(By.CLASS_NAME, "score").text == f"{hit.score:.3f}".replace("-", "−")
        assert len(page.texts("#hits > li")) == 5 and page.driver.title == "wing lift – ZeroGR search"

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_options(self, page: Page, strategy: str) -> None:
        page.open()
        page.until(lambda: len(page.driver.find_elements(By.CSS_SELECTOR, "#strategy option")) > 1)
        page.one("#chosen").click()
        page.one("#k").send_keys("2")
        page.one("#instruction").send_keys("Find it.")
        page.one(f"#strategy option[value={strategy}]").click()
        page.search("wing")
        page.settles("2 documents in")
        expected = {"query": "wing", "k": 2, "instruction": "Find it.", "strategy": strategy}
        assert page.backend.requests[-1][1].model_dump(exclude_none=True) == expected
        # The service's default need not stand in the address.
        assert ("strategy=" in page.driver.current_url) == (strategy != "beam")
        page.driver.refresh()
        page.settles("2 documents in")
        expected = {name: value for name, value in expected.items() if value != "beam"}
        assert page.backend.requests[-1][1].model_dump(exclude_none=True) == expected
        assert "2 results" in page.one("#chosen").text and "own instruction" in page.one("#chosen").text

    def test_nothing_is_found(self, page: Page) -> None:
        page.open()
        page.search("nothing")
        page.settles("No document found.")
        assert not page.texts("#hits > li") and not page.one("#how").is_displayed()

    def test_errors_are_told_and_forgotten(self, page: Page) -> None:
        page.open("?q=a+mistake")
        page.settles("The search failed. The index knows no such instruction.")
        assert "fault" in page.one("#status").get_attribute("class")
        page.search("wing")
        page.settles("5 documents in")
        assert "fault" not in page.one("#status").get_attribute("class")
        page.backend.failures.append(RuntimeError("a bug"))
        page.search("lift")
        page.settles("The search failed. Internal error; the server's log says more.")
        assert not page.texts("#hits > li")

    def test_a_service_that_is_gone(self, driver: Any) -> None:
        with served(ToyBackend()) as url:
            page = Page(driver, ToyBackend(), url)
            page.open("?q=wing")
            page.settles("5 documents in")
        page.search("lift")
        page.settles("The server cannot be reached. Is it still running?")

    def test_a_search_that_takes_its_time(self, page: Page) -> None:
        page.backend.release.clear()
        page.open("?q=wing")
        page.settles("5 documents in")
        page.search("wait")
        page.settles("Searching …")
        assert page.one("#answer").get_attribute("aria-busy") == "true"
        page.search("propeller")
        page.settles("5 documents in")
        first = page.texts("#hits .docid")
        page.backend.release.set()
        assert page.one("#answer").get_attribute("aria-busy") is None
        assert page.texts("#hits .docid") == first and "propeller" in first[0]

    def test_documents_are_text(self, page: Page) -> None:
        page.open("?q=markup")
        page.settles("5 documents in")
        assert page.texts("#hits .title") == ["<img src=x onerror=alert(1)>"] * 5
        page.search("sums")
        page.settles("5 documents in")
        page.opens_tree(".sums .row")
        assert "<img src=x onerror=alert(1)>" in page.texts(".sums .word")
        assert not page.driver.find_elements(By.TAG_NAME, "img")


class TestTheAddress:
    def test_it_holds_the_search(self, page: Page) -> None:
        page.open()
        page.search("wing & lift?")
        page.settles("5 documents in")
        assert page.driver.current_url == f"{page.url}/?q=wing+%26+lift%3F"
        page.open("?q=wing&k=3&strategy=greedy&instruction=Find+it.")
        page.settles("3 documents in")
        assert page.backend.requests[-1][1].model_dump(exclude_none=True) == {
            "query": "wing", "k": 3, "strategy": "greedy", "instruction": "Find it."
        }  # fmt: skip

    def test_back_and_forward(self, page: Page) -> None:
        page.open()
        for query in ("wing", "propeller", "propeller"):
            page.search(query)
            page.until(lambda query=query: page.driver.title.startswith(query) and page.texts("#hits > li"))
        page.driver.back()
        page.until(lambda: page.one("#query").get_property("value") == "wing" and page.driver.title.startswith("wing"))
        page.until(lambda: page.texts("#hits .docid") and page.texts("#hits .docid")[0].startswith("wing"))
        page.driver.forward()
        page.until(lambda: page.texts("#hits .docid") and page.texts("#hits .docid")[0].startswith("propeller"))
        page.driver.back()
        page.driver.back()
        page.until(lambda: page.driver.title == "ZeroGR search")
        assert not page.texts("#hits > li") and page.one("#status").text == ""


class TestTheTree:
    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_it_is_that_of_the_search(self, page: Page, strategy: str) -> None:
        page.open(f"?q=wing+slip+stream&k=4&strategy={strategy}&instruction=Find+it.")
        page.settles("4 documents in")
        assert [kind for kind, _ in page.backend.requests] == ["search"], "it costs nothing until it is wanted"
        page.opens_tree()
        assert page.backend.requests[1][1].model_dump() == page.backend.requests[0][1].model_dump()
        tree = Client(page.url).explain("wing slip stream", k=4, strategy=strategy).tree
        assert tree is not None
        path = [branch for branch in winning(tree.root) if branch.token != "<end>"]
        chips = page.texts(".strip li:not(.sure) .word")
        assert chips == [
            branch.token.strip() if branch.token.startswith(" ") else f"-{branch.token}" for branch in path
        ]
        assert page.texts(".strip li:not(.sure) .share") == [
            f"{100 * exp(branch.log_prob):.{0 if branch.log_prob > -2.3 else 1}f} %" for branch in path
        ]
        rows = page.texts(".tree > .row.win > .name > .word, .tree > details > .row.win > .name > .word")
        assert len(rows) == 1 and rows[0].startswith(path[0].token.strip())
        assert len(page.texts(".tree > *")) == 1 + len(tree.root.children) + bool(tree.root.num_left_out)
        assert page.texts(".tree .badge").count("hit 1") == 1
        assert f"of {len(DOCUMENTS)} identifiers" in page.one("#inside").text.replace("for 12", "of 12")

    def test_it_is_opened_and_walked_by_the_keyboard(self, page: Page) -> None:
        page.open("?q=wing+slip+stream&k=6")
        page.settles("6 documents in")
        page.opens_tree()
        summaries = page.driver.find_elements(By.CSS_SELECTOR, ".tree summary")
        closed = next(
            each
            for each in summaries
            if each.is_displayed() and not each.find_element(By.XPATH, "..").get_property("open")
        )
        before = len(page.texts(".tree .row"))
        closed.send_keys(Keys.ARROW_RIGHT)
        assert len(page.texts(".tree .row")) > before
        closed.send_keys(Keys.ARROW_LEFT)
        assert len(page.texts(".tree .row")) == before
        summaries[0].send_keys(Keys.ARROW_DOWN)
        assert page.driver.switch_to.active_element == next(each for each in summaries[1:] if each.is_displayed())
        page.driver.switch_to.active_element.send_keys(Keys.ARROW_UP)
        assert page.driver.switch_to.active_element == summaries[0]

    def test_the_next_search_has_its_own(self, page: Page) -> None:
        page.open("?q=wing+lift")
        page.settles("5 documents in")
        page.opens_tree()
        page.search("boundary layer")
        page.until(lambda: page.texts(".strip .word")[:1] == ["boundary"])

    def test_an_error_is_told_in_its_place(self, page: Page) -> None:
        page.open("?q=wing")
        page.settles("5 documents in")
        page.backend.failures.append(Unavailable("too many searches are waiting; try again soon"))
        page.opens_tree("#inside .fault")
        assert page.texts("#inside .fault") == ["Too many searches are waiting; try again soon."]
        assert len(page.texts("#hits > li")) == 5
        page.one("#how > summary").send_keys(Keys.ENTER)
        page.opens_tree()

    def test_sums(self, page: Page) -> None:
        page.open("?q=sums&k=2")
        page.settles("2 documents in")
        page.opens_tree(".sums .row")
        assert page.texts(".sums > li:first-child .figure") == ["+1.50", "+0.25"]
        assert page.texts(".sums > li:first-child .count") == ["written with 50 %", "in the query"]


class TestLooks:
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("width", [1280, 400])
    def test_every_state_can_be_read(self, page: Page, scheme: str, width: int) -> None:
        page.looks(width=width, scheme=scheme)
        for query, status in (
            ("wing slip stream", "5 documents in"),
            ("sums", "5 documents"),
            ("a mistake", "failed"),
            ("long", "5"),
        ):
            page.open(f"?q={query}&k=5&instruction=Find+it.")
            page.settles(status)
            if status != "failed":
                page.opens_tree("#inside .row")
            page.one("#chosen").click()
            assert page.fits(), query
            poor = [each for each in page.driver.execute_script(CONTRAST) if each[0] < 4.5]
            assert not poor, query
        background = page.driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        is_dark = sum(map(int, background[4:-1].split(","))) < 3 * 64
        assert is_dark == (scheme == "dark")


def test_a_service_with_a_token(driver: Any) -> None:
    """The page itself is open, and asks for the token when it meets a 401."""
    seen: list[str | None] = []

    def guard(api: Any) -> Any:
        @api.middleware("http")
        async def check(request: Request, call_next: Any) -> Any:
            if request.url.path != "/":
                seen.append(request.headers.get("authorization"))
                if seen[-1] != "Bearer s3cret":
                    return JSONResponse({"error": "the token is missing or wrong"}, 401)
            return await call_next(request)

        return api

    backend = ToyBackend()
    with served(backend, guard) as url:
        page = Page(driver, backend, url)
        page.open("?q=wing")
        page.settles("The search failed. The token is missing or wrong.")
        page.one("#token").send_keys("s3cret", Keys.ENTER)
        page.settles("5 documents in")
        page.until(lambda: "12 documents" in page.one("#about").text)
        assert len(page.driver.find_elements(By.CSS_SELECTOR, "#strategy option")) == 1 + len(STRATEGIES)
        assert "s3cret" not in page.driver.current_url
