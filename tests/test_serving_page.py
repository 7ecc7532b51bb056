"""The page of the completion server in a real browser, by keyboard."""

import shutil

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from tests.completions import NAME, served
from tests.test_serving_load import gated

TOKEN = "a-token-of-some-length"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    paths = [
        shutil.which("chromium") or shutil.which("chromium-browser"),
        shutil.which("chromedriver"),
    ]
    if not all(paths):
        pytest.skip("chromium or chromedriver is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = paths[0]
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu",
                     f"user-data-dir={tmp_path_factory.mktemp('chromium')}"):  # fmt: skip
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options, webdriver.ChromeService(paths[1]))
    yield found
    found.quit()


@pytest.fixture
def page(browser):
    """page(server): the page, opened, with a prompt that fits."""

    def open(server):
        browser.get(f"{server.url}/")
        shown = Page(browser)
        shown.set("max_tokens", "9")  # of a context of 32
        shown.set("prompt", "Kari")
        return shown

    return open


class Page:
    def __init__(self, browser):
        self.browser = browser

    def __getitem__(self, id):
        return self.browser.find_element(By.ID, id)

    def text(self, id):
        return self[id].get_property("textContent")

    def wait(self, condition, what):
        WebDriverWait(self.browser, 30).until(lambda _: condition(), what)

    def until(self, id, words):
        self.wait(lambda: words in self.text(id), f"{id} does not say {words!r}")

    def press(self, *keys):
        """As a keyboard: to whatever has the focus."""
        self.browser.switch_to.active_element.send_keys(*keys)

    def focus(self):
        return self.browser.switch_to.active_element.get_attribute("id")

    def set(self, id, text):
        self[id].clear()
        self[id].send_keys(text)

    def complaints(self):
        return [entry["message"] for entry in self.browser.get_log("browser")]


@pytest.fixture(scope="module")
def server(make_engine):
    with served(make_engine(of="server")) as found:
        yield found


def test_a_text_is_continued_by_keyboard(server, page):
    shown = page(server)
    shown.until("model", f"{NAME}, a context of 32 tokens")
    assert shown.focus() == "prompt"
    shown.press(" tomel")
    for id, value in (("seed", "5"), ("temperature", "0.8"), ("top_p", "0.9")):
        shown.set(id, value)
    shown.press(Keys.CONTROL, Keys.ENTER)
    shown.until("status", "written in")
    expected = server.complete("Kari tomel", max_tokens=9, seed=5, temperature=0.8, top_p=0.9)
    assert shown.text("written") == expected["choices"][0]["text"]
    assert shown.text("given") == "Kari tomel"
    counts = expected["usage"]
    read, written = counts["prompt_tokens"], counts["completion_tokens"]
    assert f"{read} tokens read, {written} written" in shown.text("status")
    shown["keep"].click()
    assert shown["prompt"].get_property("value") == "Kari tomel" + expected["choices"][0]["text"]
    assert shown.focus() == "prompt"
    assert shown.complaints() == []


def test_tab_reaches_everything_in_order(server, page):
    shown, seen = page(server), []
    assert shown.focus() == "prompt"
    while shown.focus() not in seen:
        seen.append(shown.focus())
        shown.press(Keys.TAB)
    assert [id for id in seen if id] == [
        "prompt", "go", "answer", "max_tokens", "temperature", "top_p", "top_k",
        "repetition_penalty", "seed", "stop-strings",
    ]  # fmt: skip
    for id in seen[:-1]:
        if id and shown[id].tag_name in ("input", "textarea"):
            assert shown[id].accessible_name


def test_stop_strings_reach_the_server(server, page):
    shown = page(server)
    first = server.complete("Kari", max_tokens=20, seed=5, temperature=1.0)["choices"][0]["text"]
    middle = first[len(first) // 2 :][:3]
    settings = dict(max_tokens="20", seed="5", temperature="1", top_p="1")
    for id, value in {**settings, "prompt": "Kari", "stop-strings": middle}.items():
        shown.set(id, value.replace("\n", "\\n"))
    shown["go"].click()
    shown.until("status", "came to an end")
    assert shown.text("written") == first[: first.index(middle)]


def test_markup_of_a_text_stays_text(server, page):
    shown = page(server)
    text = "<b>Ka</b>"
    shown.set("prompt", text)
    shown.set("max_tokens", "3")
    shown["go"].click()
    shown.until("status", "written in")
    assert shown.text("given") == text


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("max_tokens", "nine", "max_tokens is a string"),
        ("temperature", "101", "temperature is 101"),
        ("max_tokens", "400", "max_tokens=400 is too many"),
        ("prompt", "", "prompt is empty"),
    ],
)
def test_an_error_is_shown_at_its_field(server, page, field, value, words):
    shown = page(server)
    shown.set(field, value)
    shown["go"].click()
    shown.until("error", words)
    assert shown[field].get_attribute("aria-invalid") == "true"
    assert shown.focus() == field
    assert shown["error"].is_displayed()
    shown.set("prompt", "Kari")
    shown.set("temperature", "1")
    shown.set("max_tokens", "3")
    shown.press(Keys.CONTROL, Keys.ENTER)
    shown.until("status", "written in")
    assert not shown["error"].is_displayed()


def test_stop_ends_the_completion_here_and_there(make_engine, page):
    with gated(make_engine()) as (server, gate):
        shown = page(server)
        shown.until("model", NAME)
        shown.set("max_tokens", "20")
        shown.press(Keys.CONTROL, Keys.ENTER)
        server.until(running=1)
        gate.let(8)
        shown.wait(lambda: shown.text("written"), "nothing is written")
        assert shown["answer"].get_attribute("aria-busy") == "true"
        assert not shown["go"].is_enabled()
        shown.press(Keys.ESCAPE)
        shown.until("status", "stopped after")
        gate.let(1)
        server.until(running=0)
        assert shown["go"].is_enabled()
        assert not shown["error"].is_displayed()


def test_a_server_that_goes_is_named(make_engine, page):
    with gated(make_engine()) as (server, gate):
        shown = page(server)
        shown.until("model", NAME)
        shown.set("max_tokens", "20")
        shown["go"].click()
        server.until(running=1)
        server.end()
        server.end()
        gate.let(1)
        shown.until("error", "the server ends")
        gate.let_all()
        server.join()
        shown["go"].click()
        shown.until("error", "the server does not answer")


def test_the_token_is_asked_for_and_used(make_engine, page):
    with served(make_engine(), TOKEN) as server:
        shown = page(server)
        shown.until("error", "this server asks for its token")
        shown["token"].send_keys("x", Keys.ENTER)
        shown.until("error", "token is missing or wrong")
        assert shown.focus() == "token"
        shown.press(TOKEN[1:], Keys.TAB)
        shown.until("error", "token is missing or wrong")
        shown.set("token", TOKEN)
        shown.press(Keys.TAB)
        shown.until("model", NAME)
        shown["go"].click()
        shown.until("status", "written in")
        stored = "return localStorage.length + sessionStorage.length + document.cookie.length"
        assert shown.browser.execute_script(stored) == 0


def test_another_site_s_page_can_not_ask(server, make_engine, browser):
    """The browser's own requests, from a page of another origin on this machine."""
    script = """
        const done = arguments[arguments.length - 1];
        fetch(arguments[0] + "/v1/completions", {method: "POST", mode: arguments[1],
          headers: {"Content-Type": arguments[2]}, body: '{"prompt": "Kari"}'})
          .then(answer => done(answer.type), error => done(error.name));
    """
    with served(make_engine()) as other:
        browser.get(f"{other.url}/health")
        server.log.clear()
        kinds = [("cors", "application/json"), ("no-cors", "text/plain")]
        found = [browser.execute_async_script(script, server.url, *kind) for kind in kinds]
    assert found == ["TypeError", "opaque"]
    # The browser asks first whether it may send JSON, and does not.
    refused = [line.split()[1:3] for line in server.log if " 403 " in line]
    assert refused == [["-", "-"], ["POST", "/v1/completions"]]
