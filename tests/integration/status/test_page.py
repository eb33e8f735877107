"""The status page as a reader gets it: in headless Chromium where there is one, as server-made tables everywhere."""

from __future__ import annotations

import contextlib
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

from node.status import page, summary
from tests.integration.status.conftest import Serve
from tests.support import browser
from tests.support.fake_status import SOME_DAY, TOKEN, FakeStatus, published
from tests.support.http_client import request

EVIL = "<img src=x onerror=alert(1)>\"'&$node"


class Cells(HTMLParser):
    """The text of each table cell, and every tag and attribute there is."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "td":
            self._open = True
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "td":
            self._open = False

    def handle_data(self, data: str) -> None:
        if self._open:
            self.cells[-1] += data


async def fetch(serve: Serve, fake: FakeStatus) -> str:
    async with serve(fake) as server:
        answer = await request(server.address, "GET", "/")
        assert answer.status == 200 and answer.headers["content-type"] == "text/html; charset=utf-8"
        return answer.body.decode()


async def test_page_without_a_script_tells_the_essentials(serve: Serve):
    text = await fetch(serve, FakeStatus("n2"))
    plain = text[text.index("<noscript>\n  <p") :]
    cells = Cells(plain).cells
    facts = dict(zip(cells[:22:2], cells[1:22:2], strict=True))
    assert facts["Trading"] == "allowed" and facts["Leader"] == "n1" and facts["Fencing token"] == str(TOKEN)
    assert facts["Unresolved orders"] == "0" and facts["Double-order class"] == "proved"
    assert facts["Its cause"] == "process died" and facts["Its RTO, seconds"] == "0.023"
    for name, role, lag in (("n1", "leader", "–"), ("n2", "standby", "0"), ("n3", "standby", "12")):
        at = cells.index(name, 22)
        assert cells[at : at + 4] == [name, role, "yes", lag]
    assert "BTCUSDT" in cells


async def test_page_holds_no_inline_script_or_style_and_no_foreign_address(serve: Serve):
    text = await fetch(serve, FakeStatus("n1"))
    for tag, attributes in Cells(text).tags:
        assert tag != "style" and not any(a == "style" or a.startswith("on") for a in attributes)
        for a in ("src", "href", "action"):
            assert not re.match(r"[a-z]+:|//", attributes.get(a) or ""), (tag, attributes)
    assert re.findall(r"<script[^>]*>([^<]*)</script>", text) == [""]
    for name in page.FILES:
        assert f'"{name}"' in text
        assert not re.search(rb"https?://(?!www\.w3\.org/2000/svg)|url\(|@import", page.FILES[name].body)


async def test_what_others_wrote_is_text_and_never_markup(serve: Serve):
    fake = FakeStatus("n1")
    fake.own = published("leader", permission="blocked", permission_reason=EVIL)
    fake.members["n2"]["version"] = EVIL
    fake.members[EVIL] = fake.members["n3"]
    fake.history[1]["cause"] = EVIL
    fake.details["warnings"] = [EVIL]
    text = await fetch(serve, fake)
    assert "<img src=x" not in text
    parsed = Cells(text)
    assert EVIL in parsed.cells
    body = next(attributes for tag, attributes in parsed.tags if tag == "body")
    document = json.loads(body["data-status"] or "")
    assert document["permission"]["reason"] == EVIL and document["warnings"] == [EVIL]


def test_every_double_order_class_has_its_sentence_and_only_those():
    c = summary.read(None, {}, {}, me="n1")
    text = page.render(summary.document(c, {}, [], unix_now=SOME_DAY))
    assert set(re.findall(r'data-class="([^"]*)"', text)) == {"proved", "time-bounded", "best effort", ""}


def seen(dom: str, identity: str) -> str:
    """The text of the element with this id, as plain text."""
    found = re.search(rf'<(\w+)[^>]* id="{identity}"[^>]*>(.*?)</\1>', dom, re.S) or re.search(
        rf'<(\w+) id="{identity}"[^>]*>(.*?)</\1>', dom, re.S
    )
    assert found, identity
    return html.unescape(re.sub(r"<[^>]+>", " ", found[2])).strip()


async def test_browser_shows_the_document_that_came_with_the_page(serve: Serve, tmp_path: Path):
    fake = FakeStatus("n2")
    if browser.find() is None:  # then what a reader without scripts gets has to hold
        assert dict.fromkeys(Cells(await fetch(serve, fake)).cells).keys() >= {"n1", "n2", "n3", "leader", "standby"}
        return
    async with serve(fake) as server:
        dom = await browser.dump_dom(f"http://{server.address}/", tmp_path / "profile")
    assert "hidden" not in (re.search(r'<main id="app"[^>]*>', dom) or [""])[0]
    assert seen(dom, "level") == "Trading allowed" and seen(dom, "leader-token") == str(TOKEN)
    assert "n1 leads, since 2026-11-18 11:06:40 UTC" in seen(dom, "who")
    assert "process died" in seen(dom, "failover-what") and seen(dom, "failover-rto") == "23 ms"
    assert "n3" in seen(dom, "nodes") and "12" in seen(dom, "nodes")


async def test_browser_follows_a_role_change_and_shouts_when_the_node_is_gone(serve: Serve, tmp_path: Path):
    fake = FakeStatus("n1")
    if browser.find() is None:
        assert "n1" in Cells(await fetch(serve, fake)).cells
        fake.hand_over_to_n2()
        cells = Cells(await fetch(serve, fake)).cells
        assert cells[cells.index("Leader") + 1] == "n2"
        return
    async with contextlib.AsyncExitStack() as node:
        address = (await node.enter_async_context(serve(fake))).address
        async with browser.open_tab(f"http://{address}/", tmp_path / "profile") as tab:
            await tab.until("document.getElementById('line').textContent === '✓ live'")
            assert await tab.evaluate("document.getElementById('leader-node').textContent") == "n1"
            fake.hand_over_to_n2()
            fake.details["warnings"] = [EVIL]
            await tab.until("document.getElementById('leader-node').textContent === 'n2'")
            assert "n2 leads" in await tab.evaluate("document.getElementById('announce').textContent")
            assert await tab.until("document.querySelector('#warnings li')?.textContent") == f"⚠ {EVIL}"

            fake.picture_age_s = 9.0
            await tab.until("document.getElementById('level').textContent === 'Trading not confirmed'")
            assert await tab.evaluate("document.getElementById('banner').dataset.tone") == "bad"
            fake.picture_age_s = 0.05
            await tab.until("document.getElementById('level').textContent === 'Trading allowed'")

            for width in (1280, 360):
                await tab.call(
                    "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False
                )
                assert await tab.evaluate("document.documentElement.scrollWidth") == width, "scrolls sideways"
            await tab.screenshot(tmp_path / "phone.png")
            assert (tmp_path / "phone.png").stat().st_size > 20_000
            assert tab.complaints == []  # no exception, nothing that the security policy had to refuse

            await node.aclose()
            await tab.until("document.getElementById('lost').textContent.includes('Connection to n1 lost')")
            assert (await tab.evaluate("document.getElementById('line').textContent")).startswith("✕ data is ")
            assert (await tab.evaluate("document.getElementById('level').textContent")).startswith("Not known now")
            assert "lost" in await tab.evaluate("document.title")

            await node.enter_async_context(serve(fake, address))
            await tab.until("document.getElementById('line').textContent === '✓ live'")
            assert await tab.evaluate("document.getElementById('level').textContent") == "Trading allowed"
            assert await tab.evaluate("document.getElementById('lost').textContent") == ""
