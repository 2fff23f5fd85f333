"""The traces page in a real browser, driven over WebDriver with the standard library."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cascadellm import (
    Answer,
    Cascade,
    Price,
    Request,
    Threshold,
    Tier,
    Valid,
    mean_logprob,
    record_cascade,
)
from cascadellm.perform import LocalPerformer, drive
from cascadellm.report import write_report
from cascadellm.testing import FakeModel

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver"),
]

OPEN = "document.querySelectorAll('#calls tr.call').forEach(row => row.click())"
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


class Browser:
    """A headless Chromium behind its driver."""

    def __init__(self, port: int, *, dark: bool) -> None:
        self.base = f"http://127.0.0.1:{port}"
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,1500"]
        if dark:
            arguments.append("--blink-settings=preferredColorScheme=0")
        options = {"binary": CHROMIUM, "args": arguments}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        made = self.send("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self.base += f"/session/{made['sessionId']}"

    def send(self, method: str, path: str, body: Any = None) -> Any:
        """Send one WebDriver command."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.base + path, data, {"Content-Type": "application/json"}, method=method
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.loads(reply.read())["value"]

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript in the page."""
        return self.send("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def screenshot(self, name: str) -> bytes:
        """Take a screenshot; kept where CASCADELLM_SCREENSHOTS names a folder."""
        image = base64.b64decode(self.send("GET", "/screenshot"))
        folder = os.environ.get("CASCADELLM_SCREENSHOTS")
        if folder:
            (Path(folder) / f"{name}.png").write_bytes(image)
        return image


@pytest.fixture(params=["light", "dark"])
def browser(request: pytest.FixtureRequest) -> Iterator[Browser]:
    """A browser in light and in dark mode."""
    assert DRIVER is not None
    port = random.Random(os.getpid() + (request.param == "dark")).randint(20000, 60000)
    driver = subprocess.Popen(
        [DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        found = None
        for _ in range(100):
            with contextlib.suppress(OSError):
                found = Browser(port, dark=request.param == "dark")
                break
            time.sleep(0.1)
        assert found is not None, "chromedriver did not start"
        try:
            yield found
        finally:
            found.send("DELETE", "")
    finally:
        driver.terminate()
        driver.wait(10)


def record_calls(path: Path) -> None:
    """Record a few dozen calls, one of them token-level."""
    rng = random.Random(5)
    with record_cascade(path):
        for number in range(40):
            reply: Any = f"The tram stops at harbour-{number}. {HOSTILE if number == 3 else ''}"
            if number % 9 == 8:
                reply = TimeoutError("no answer in time")
            small = FakeModel(reply, name="small", logprob=-abs(rng.gauss(0.3, 0.2)))
            tiers = [
                Tier(small, price=Price(0.1, 0.2)),
                Tier(FakeModel("It stops at the old harbour.", name="large"), price=Price(1, 4)),
            ]
            cascade = Cascade(tiers, Threshold(mean_logprob, -0.35) | Valid())
            request = Request("q", f"Where does tram {number} stop?")
            drive(cascade.plan(request), LocalPerformer())
        answer = Answer(
            "The \U0001f68b tram stops here.",
            spans=((0, 5, "small"), (5, 16, "large"), (16, 22, "small")),
            speculation={"rule": "TokenV3", "alpha": 0.3, "gamma": 5, "accepted": 9},
        )
        pair = Tier(FakeModel(answer, name="small+large"), price=Price(1, 4))
        drive(Cascade([pair]).plan(Request("q", "Which stop?")), LocalPerformer())


def test_page_when_opened(browser: Browser, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """The page loads without a console error or request; filter, sorting and rows work."""
    record_calls(tmp_path / "t.jsonl")
    write_report(tmp_path / "t.jsonl", tmp_path / "t.html")
    browser.send("POST", "/url", {"url": (tmp_path / "t.html").as_uri()})
    name = request.node.callspec.params["browser"]
    rows = "return document.querySelectorAll('#calls tr.call').length"
    fill = (
        "const box = document.getElementById('search'); box.value = arguments[0];"
        "box.dispatchEvent(new Event('input'))"
    )
    assert 41 == browser.run(rows)
    browser.screenshot(f"traces-{name}")

    browser.run(fill, "harbour-15.")
    assert 1 == browser.run(rows)
    browser.run(fill, "onerror")
    browser.run("document.querySelector('#calls tr.call').click()")
    assert HOSTILE in browser.run("return document.querySelector('tr.detail').textContent")
    assert 0 == browser.run("return document.querySelectorAll('#calls img, #calls script').length")

    browser.run(fill, "Which stop?")
    browser.run("document.querySelector('#calls tr.call').click()")
    written = browser.run(
        "const found = [...document.querySelectorAll('tr.detail .span')];"
        "return found.map(s => [s.textContent, s.title])"
    )
    assert [["The \U0001f68b", "small"], [" tram stops", "large"], [" here.", "small"]] == written

    browser.run(fill, "")
    browser.run(
        "const s = document.getElementById('escalated'); s.value = 'yes';"
        "s.dispatchEvent(new Event('change'))"
    )
    assert 0 < browser.run(rows) < 41
    browser.run("document.querySelector('th button[data-key=score]').click()")
    sorted_by = "return document.querySelector('th[aria-sort=descending] button').dataset.key"
    assert "score" == browser.run(sorted_by)
    browser.run("document.querySelectorAll('#calls tr.call')[0].click()")
    browser.run("document.querySelectorAll('#calls tr.call')[2].click()")
    browser.run("document.getElementById('search').scrollIntoView()")
    browser.screenshot(f"traces-{name}-open")

    assert "owned" != browser.run("return document.title")
    assert [] == browser.run("return performance.getEntriesByType('resource').map(e => e.name)")
    log = browser.send("POST", "/se/log", {"type": "browser"})
    assert [] == log


def test_page_when_narrow(browser: Browser, tmp_path: Path) -> None:
    """On a phone's width nothing but tables scrolls sideways."""
    record_calls(tmp_path / "t.jsonl")
    write_report(tmp_path / "t.jsonl", tmp_path / "t.html")
    browser.send("POST", "/window/rect", {"width": 500, "height": 900})
    browser.send("POST", "/url", {"url": (tmp_path / "t.html").as_uri()})

    assert browser.run("return document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.parametrize("browser", ["light"], indirect=True)
def test_row_when_the_prompt_is_long(browser: Browser, tmp_path: Path) -> None:
    """An opened row begins with the attempts; a prompt full of context is folded below."""
    asked = "user: Context:\n" + "Trams stop. " * 200 + "\nQuery: Which stop?\nAnswer: "
    with record_cascade(tmp_path / "t.jsonl"):
        cascade = Cascade([FakeModel("This one.", name="small")])
        for question in (asked, "Short?"):
            drive(cascade.plan(Request("q", question)), LocalPerformer())
    write_report(tmp_path / "t.jsonl", tmp_path / "t.html")
    browser.send("POST", "/url", {"url": (tmp_path / "t.html").as_uri()})
    browser.run(OPEN)
    headings = (
        "const rows = [...document.querySelectorAll('tr.detail')];"
        "return rows.map(row => row.querySelector('h3').textContent)"
    )

    assert ["Question", "Attempts"] == browser.run(headings)
    assert [False] == browser.run(
        "return [...document.querySelectorAll('details')].map(d => d.open)"
    )
    browser.run("document.querySelector('summary').click()")
    assert "Trams stop." in browser.run("return document.querySelector('details').innerText")


EVERYWHERE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


def hostile_page(folder: Path) -> Path:
    """Write a page in which every text of every record is markup, without its policy."""
    attempt = {
        "tier": 0,
        "action": "escalate",
        "calls": [{"name": EVERYWHERE, "purpose": EVERYWHERE}],
    }
    texts = ("name", "policy", "score_name", "code", "reason", "error")
    attempt |= {key: f"{key} {EVERYWHERE}" for key in texts} | {"score": 0.1, "threshold": 0.2}
    row = {
        **{key: f"{key} {EVERYWHERE}" for key in ("answered_by", "input", "output", "error")},
        "attempts": [attempt],
        "drafts": [f"draft {EVERYWHERE}"],
        "spans": [[0, 9, EVERYWHERE]],
        "speculation": {EVERYWHERE: EVERYWHERE},
    }
    (folder / "t.jsonl").write_text(json.dumps(row) + "\n{" + EVERYWHERE + "\n")
    write_report(folder / "t.jsonl", folder / "t.html", title=EVERYWHERE)
    # the page's content policy would stop a script that got in; here it must not get in at all
    text, count = re.subn(
        r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", (folder / "t.html").read_text()
    )
    assert 1 == count
    (folder / "t.html").write_text(text)
    return folder / "t.html"


PLANTED = "return document.querySelectorAll('img, iframe, main script:not(#data)').length"


@pytest.mark.parametrize("browser", ["light"], indirect=True)
def test_page_when_every_text_holds_script_tags(browser: Browser, tmp_path: Path) -> None:
    """Script tags in model output, names, errors and bad lines are shown as text and inert."""
    browser.send("POST", "/url", {"url": hostile_page(tmp_path).as_uri()})
    browser.run(OPEN)
    shown = browser.run("return document.querySelector('tr.detail').textContent")

    for key in ("input", "output", "draft", "reason", "error", "score_name"):
        assert f"{key} {EVERYWHERE}" in shown
    assert 0 == browser.run(PLANTED)
    assert EVERYWHERE == browser.run("return document.title")


@pytest.mark.parametrize("browser", ["light"], indirect=True)
def test_page_when_text_is_written_as_markup(browser: Browser, tmp_path: Path) -> None:
    """The check has power: a script that wrote markup would let the tags in (mutation)."""
    page = hostile_page(tmp_path)
    safe = "node.textContent = text"
    assert safe in page.read_text()
    page.write_text(page.read_text().replace(safe, "node.innerHTML = text"))
    browser.send("POST", "/url", {"url": page.as_uri()})
    browser.run(OPEN)

    assert 0 < browser.run(PLANTED)
