"""A failure is made small without becoming another one, and its page tells a stranger what went wrong."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from chaos.sim import words
from chaos.sim.faults import FAULTS
from chaos.sim.headline import headline_of
from chaos.sim.mutants import MUTANTS
from chaos.sim.plan import STEPS, Fault, Plan, Trap, draw_plan
from chaos.sim.replay import Explained, explain_failure, write_replay
from chaos.sim.scenarios import SCENARIOS, TWO
from chaos.sim.shrink import shrink
from chaos.sim.story import Mark
from chaos.sim.timeline import Bar, again, permit_bars
from chaos.sim.words import script_in_words, trap_in_words
from chaos.sim.world import World
from cluster.core.ids import Instant
from node.codec import Evidence, Result
from node.orders import Flight, LookUp, OrderDesk, Send
from node.paper_venue.engine import Engine as Exchange
from node.types import OrderSpec, SubmitResult, Unknown
from tests.support import browser

BUDGET = 60


def breaks(plan: Plan, invariant: str) -> bool:
    return invariant in World(plan).run().broken


def size(plan: Plan) -> int:
    return len(plan.faults) + len(plan.traps)


# -- shrinking ---------------------------------------------------------------------------------------------------------


def test_of_all_steps_those_that_are_needed_stay():
    plan = next(p for p in map(draw_plan, range(100)) if len(p.faults) >= 8 and len(p.traps) == 3)
    needed = {plan.faults[1], plan.faults[6], plan.traps[2]}
    asked: list[Plan] = []

    def fails(p: Plan) -> bool:
        asked.append(p)
        return {f._replace(length=0) for f in needed} <= {f._replace(length=0) for f in (*p.faults, *p.traps)}

    small = shrink(plan, fails)
    assert {f._replace(length=0) for f in needed} == {*small.faults, *small.traps}
    assert (small.nodes, small.loss, small.late, set(small.drifts)) == (2, 0, 0, {0})
    assert len(asked) == len(set(asked)) <= 400
    assert shrink(plan, fails) == small


def test_a_length_goes_down_to_what_still_fails():
    plan = replace(draw_plan(1), faults=(Fault(400_000_000, "host pause", "leader", 900_000_000),), traps=())
    small = shrink(plan, lambda p: bool(p.faults) and p.faults[0].length >= 300_000_000)
    assert 300_000_000 <= small.faults[0].length < 400_000_000
    assert small.heal_at < plan.heal_at


@pytest.mark.parametrize("budget", (0, 1, 7))
def test_a_budget_is_kept_and_what_comes_out_fails_all_the_same(budget: int):
    plan, asked = draw_plan(2), []

    def fails(p: Plan) -> bool:
        asked.append(p)
        return size(p) >= size(plan) - 1

    small = shrink(plan, fails, budget)
    assert len(asked) <= budget
    assert size(small) >= size(plan) - 1


# -- the page ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn() -> Plan:
    """A plan in which a decision that is sent again under a fresh id becomes two orders."""
    with MUTANTS["M11"].applied():
        return next(plan for plan in map(draw_plan, range(400)) if breaks(plan, "S1"))


@pytest.fixture(scope="module")
def two_orders(drawn: Plan, tmp_path_factory: pytest.TempPathFactory) -> Explained:
    with MUTANTS["M11"].applied():
        return explain_failure(drawn, tmp_path_factory.mktemp("two orders"), BUDGET)


def test_a_decision_that_became_two_orders_is_told_to_a_stranger(drawn, two_orders):
    done = two_orders
    assert done.problems[0].startswith("S1: ")
    assert size(done.plan) < size(drawn) // 2
    assert Plan.from_json(done.script.read_text()) == done.plan
    with MUTANTS["M11"].applied():
        assert breaks(done.plan, "S1")
    assert not breaks(done.plan, "S1")  # it is the planted mistake that did it

    text = done.timeline.read_text()
    assert "<h1>One decision became two orders.</h1>" in text
    fresh, first = re.findall(r"as (\w+) and (\w+)", done.problems[0])[0]
    wrong = re.search(r"<tr class=wrong.*?</tr>", text)
    assert wrong is not None and fresh in wrong.group() and "the first wrong step" in wrong.group()
    story = text[text.index("<h2>What happened") : text.index("<h2>The same, drawn")]
    for told in (
        f"the venue accepts order {first}",
        f"the venue accepts order {fresh}",
        "gives the lease to",
        "with token",
    ):
        assert told in story
    assert story.index(f"order {first} claimed") < story.index(f"order {fresh} claimed")
    assert html.escape(again(done.script)) in text


def test_a_page_needs_nothing_from_elsewhere(two_orders):
    text = two_orders.timeline.read_text()
    assert not re.findall(r"https?:|//\w|@import|<link|<img|url\((?!#)", text)
    assert [*re.findall(r"<script[^>]*>", text)] == ["<script>"]


def test_what_comes_from_a_run_is_text_on_the_page(drawn, tmp_path):
    with MUTANTS["M11"].applied():
        plan = replace(drawn, profile="<script>alert(1)</script>&")
        assert "<script>alert" not in write_replay(plan, tmp_path).timeline.read_text()


def test_a_run_that_breaks_nothing_has_no_story_of_a_failure(tmp_path):
    with pytest.raises(ValueError, match="breaks nothing"):
        explain_failure(draw_plan(3), tmp_path)
    done = write_replay(draw_plan(3), tmp_path)
    assert not done.problems and done.timeline.name == "seed-3.html"
    text = done.timeline.read_text()
    assert "<h1>Nothing is wrong.</h1>" in text and "The checker says" not in text


def header(done: Explained) -> str:
    text = done.timeline.read_text()
    return html.unescape(text[text.index("<header") : text.index("</header>")])


def rows(done: Explained) -> list[str]:
    """Of the story, as text."""
    text = done.timeline.read_text()
    story = text[text.index("<h2>What happened") : text.index("<h2>The same, drawn")]
    found = re.findall(r"<tr.*?</tr>", story, re.DOTALL)[1:]
    return [html.unescape(re.sub(r"\s*<[^>]*>\s*", " ", row)).strip() for row in found]


def wrong_row(done: Explained) -> str:
    return next(row for row in rows(done) if "the first wrong step" in row)


def explained(tmp_path: Path, **changed: Callable[..., object]) -> Explained:
    """Of the first seed that fails with these methods of the order desk."""
    with patch.multiple(OrderDesk, **changed):
        plan = next(p for p in map(draw_plan, range(60)) if World(p).run().broken)
        return explain_failure(plan, tmp_path, BUDGET)


def test_a_decision_taken_twice_is_told_as_what_stopped_the_node(tmp_path):
    place = OrderDesk.place

    def heedless(self: OrderDesk, spec: OrderSpec, decision_id: str, **more: Any) -> object:
        self._pending.decisions.clear()
        with patch.object(type(self.book), "decided", lambda *_: False):
            return place(self, spec, decision_id, **more)

    done = explained(tmp_path, place=heedless)
    node, entry, decision = re.findall(
        r"(n\d) raised InvariantViolation: entry (\d+) decides '(.*?)'", done.problems[0]
    )[0]
    assert f"<h1>{node} stopped itself: entry {entry} decides '{decision}' a second time.</h1>" in header(done)
    told = [row for row in rows(done) if f"decision {decision}, to" in row]
    assert len(told) > 1 and "The same leader has taken this decision before" in wrong_row(done)
    assert wrong_row(done) == told[1]


def test_an_absence_without_proof_is_told_with_its_order(tmp_path):
    def gullible(self: OrderDesk, asked: LookUp, *_: object) -> None:
        self._outcome(asked.index, Result.NOT_SENT, Evidence.ABSENT_FENCED, code="absent")

    done = explained(tmp_path, _conclude_absent=gullible)
    (order,) = re.findall(r"S10: order (\w+), entry \d+ of the log: absence proved by a fence", done.problems[0])
    assert "<h1>An order was called never placed, and nothing had proved it.</h1>" in header(done)
    story = rows(done)
    ways = (f"written down as order {order}", f"asks the venue for order {order}", f"does not have it (order {order})")
    for told in (*ways, f"order {order} is written down as NOT SENT"):
        assert any(told in row for row in story), told
    assert "That proves nothing: this venue does not look at tokens" in wrong_row(done)


def test_a_second_send_after_silence_has_its_rows(tmp_path):
    submitted = OrderDesk.submitted

    def stubborn(self: OrderDesk, index: int, result: SubmitResult, now: Instant) -> object:
        flight = self._flights.get(index)
        if flight is None or not isinstance(result, Unknown):
            return submitted(self, index, result, now)
        return [Send(index, flight.client_order_id, flight.decision_id, flight.spec)]

    done = explained(tmp_path, submitted=stubborn)
    (order,) = re.findall(r"sends (\w+) a second time", done.problems[0])
    assert "sent one order twice.</h1>" in header(done)
    places = [i for i, row in enumerate(rows(done)) if f"the bytes of order {order} leave" in row]
    silence = next(i for i, row in enumerate(rows(done)) if f"no answer for order {order} after" in row)
    assert len(places) == 2 and places[0] < silence < places[1]
    assert "They have left before." in wrong_row(done)
    ring = re.search(r'<circle class="ring" cx="[\d.]+%" cy="([\d.]+)"', done.timeline.read_text())
    lanes = re.findall(r"<div>([^<]*)</div>", done.timeline.read_text())
    assert ring is not None and lanes[int((float(ring[1]) - 26) // 44)].endswith(" worker")


def test_an_order_sent_without_a_claim_says_so(tmp_path):
    def unclaimed(self: OrderDesk, flight: Flight, now: Instant) -> object:
        if not flight.committed_at or flight.sent_at:
            return []
        flight.sent_at = now
        return [Send(flight.index, flight.client_order_id, flight.decision_id, flight.spec)]

    done = explained(tmp_path, _maybe_send=unclaimed)
    assert "<h1>An order reached the venue without a claim at the gate.</h1>" in header(done)
    assert "the bytes of order" in wrong_row(done) and "No claim was granted for it." in wrong_row(done)


def test_every_time_on_the_page_counts_from_the_start_of_the_run(two_orders):
    text = two_orders.timeline.read_text()
    wrong_ms = re.findall(r"The first wrong step, at ([\d.]+) ms", text)[0]
    assert re.search(rf"<tr class=wrong id=wrong>.*?<td class=n>{re.escape(wrong_ms)}</td>", text)
    first, log = rows(two_orders)[0], text[text.index("The whole log") :]
    lease_ms = re.findall(r"\d+ +([\d.]+) +etcd", first)[0]
    logged = re.findall(r"<td class=n>([\d.]+)</td><td>etcd</td><td>lease</td>", log)
    assert lease_ms in [f"{float(ms):.1f}" for ms in logged]


def test_a_calm_page_has_all_its_faults_and_promises_no_wrong_step(tmp_path):
    plan = draw_plan(3)
    done = write_replay(plan, tmp_path)
    text = done.timeline.read_text().partition("<script>")[0]
    assert "<header class=calm>" in text and "red ring" not in text and "wrong step" not in text
    assert "Left out" not in text


def test_no_step_is_promised_where_what_is_wrong_is_what_is_missing(tmp_path):
    done = explained(tmp_path, _fill=lambda *_: None)
    assert re.match(r"S[56]: ", done.problems[0])
    text = done.timeline.read_text()
    assert "No single step is known to be wrong" in text and "red ring" not in text and "class=wrong" not in text
    assert any("is filled" in row for row in rows(done))


@pytest.mark.parametrize(
    ("violation", "told"),
    [
        ("", "Nothing is wrong."),
        ("9.0 ms: L2: n1 raised KeyError: 'd7' on an event of term 8", "n1 failed with KeyError: 'd7'."),
        (
            "9.0 ms: L2: n2 stopped for good: the journal is gone: see there",
            "n2 stopped for good: the journal is gone.",
        ),
        ("5.4 ms: L2: no order is accepted within 8 ttls", "The cluster was healed, and did not trade again."),
        ("1.0 ms: S3: n1 gets a permit for 30 while n2 holds one", "Two nodes led at the same time."),
        ("1.0 ms: S3: n2 gives 25 back before its worker", "n2 gave its lease back while it could still send."),
        ("S2: venue_seq 11, keep_alive with token 20", "The venue took a message of a leader that had been replaced."),
        ("S11: whatever it is", "An order was placed after the kill switch was pressed."),
    ],
)
def test_a_headline_is_that_of_the_violation(violation: str, told: str):
    assert headline_of(violation) == told


def test_a_permit_that_outlives_its_lease_is_the_first_wrong_step(tmp_path):
    with MUTANTS["E1"].applied():
        done = write_replay(SCENARIOS["N2b"].plan, tmp_path)
    assert "S3: " in done.problems[0]
    text = done.timeline.read_text()
    wrong = re.search(r"<tr class=wrong.*?</tr>", text)
    assert "<h1>Two nodes led at the same time.</h1>" in text
    assert wrong is not None and "longer than etcd keeps a lease" in wrong.group()


def test_an_order_frozen_on_its_way_out_and_taken_from_a_deposed_leader(tmp_path):
    plan = replace(TWO, traps=(Trap("worker", "bytes", 5, "host pause", 1_000_000_000),))
    with patch.multiple(Exchange, _stale=lambda *_: None, _expired=lambda *_: None):
        done = write_replay(plan, tmp_path)
    assert re.match(r"S2: venue_seq \d+, new with token", done.problems[0])
    text = done.timeline.read_text()
    older, newer = re.findall(r"token (\d+)", done.problems[0])
    story = [re.sub(r"<[^>]*>", " ", row) for row in re.findall(r"<tr>.*?</tr>|<tr class=wrong.*?</tr>", text)]
    order = next(m for row in story if (m := re.search(r"the venue accepts order (\w+)", row)))[1]

    def place(what: str) -> int:
        return next(i for i, row in enumerate(story) if what in row)

    told = (
        f"with token {older}",
        f"is written down as order {order}",
        f"is frozen right before the bytes of order {order} leave, with all checks behind it, for 1000 ms",
        f", token {older}, is over",
        f"with token {newer}",
        "runs again",
        f"the bytes of order {order} leave with token {older}",
        f"it heard of token {newer}, and must refuse older ones",
    )
    assert [place(what) for what in told] == sorted(place(what) for what in told)


@pytest.mark.skipif(browser.find() is None, reason="no Chromium is installed")
async def test_a_browser_opens_the_page_and_has_nothing_to_complain_of(two_orders, tmp_path):
    async with browser.open_tab(two_orders.timeline.as_uri(), tmp_path / "profile") as tab:
        await tab.until("document.querySelectorAll('svg .badge').length > 5")
        shown = "getComputedStyle(document.querySelector('.arrow.k-link')).display"
        assert await tab.evaluate(shown) == "none"
        await tab.evaluate("document.getElementById('k-link').click()")
        assert await tab.evaluate(shown) != "none"
        width = "document.querySelector('.pane').scrollWidth"
        before = await tab.evaluate(width)
        await tab.evaluate("document.getElementById('z16').click()")
        assert await tab.evaluate(width) > 10 * before
        ring = "document.querySelector('.ring').getBoundingClientRect().x"
        assert 0 < await tab.evaluate(ring) < await tab.evaluate("innerWidth")
        assert tab.complaints == []


# -- the script in words -----------------------------------------------------------------------------------------------


def test_every_fault_and_every_trap_has_words():
    plan = draw_plan(1)
    faults = tuple(Fault(400_000_000, kind, "leader", 100_000_000) for kind in FAULTS)
    effects = ("pause", "host pause", "kill", "late", "given up", "lost journal", "late answer", "held request")
    traps = tuple(Trap("worker", "bytes", 2, effect, 1_000_000) for effect in effects)
    told = script_in_words(replace(plan, faults=faults, traps=traps))
    assert len(set(told)) == len(told) >= 1 + len(faults) + len(traps)
    assert not [t for t in told if re.search(r"[{}]", t)]
    asked = next(t for t in told if "switchover" in t)
    assert asked.endswith("a person asks for a switchover")  # which lasts no time


def test_every_step_of_a_trap_has_words():
    traps = [Trap(process, step, 1, "kill", 0) for process, steps in STEPS.items() for step in sorted(steps)]
    assert len({trap_in_words(t) for t in traps}) == len(traps)


def test_marks_of_faults_and_traps_are_in_words():
    found = set()
    for seed in range(12):
        world = World(draw_plan(seed), traced=True)
        world.run()
        found |= {m.text for m in map(words.told, world.engine.story or ()) if m.lane == "faults"}
    assert not [t for t in found if re.match(r"[\w ]+ at n\d", t) or "ReportReconciled" in t], found
    text = "armed by n2/1 with token 8: REFUSED, stale_token; the highest is 9"
    told = words.told(Mark(1, "gate", "fence", text)).text
    assert told == "armed by n2 with token 8: refused, a newer token is armed; the highest is 9"


def test_a_story_stays_in_true_order_and_ends_with_the_violation(drawn):
    with MUTANTS["M11"].applied():
        world = World(drawn, traced=True)
        ended = world.run()
    assert "S1" in ended.broken
    told = [m for m in world.engine.story or () if not m.to]
    assert [m.at for m in told] == sorted(m.at for m in told)


def test_a_bar_ends_with_its_last_permit_or_where_it_is_dropped_or_its_keeper_dies():
    def permit(at: int, until: int, node: str = "n1", token: int = 7) -> Mark:
        return Mark(at, f"{node} keeper", "permit", "", until=until, token=token)

    death = Mark(45, "n2 keeper", "death", "the keeper of n2 is dead, and its worker with it")
    late_drop, early_drop = permit(90, 0), permit(60, 0, token=9)
    marks = [
        permit(10, 30),
        permit(20, 40),
        permit(30, 80, "n2"),
        death,
        permit(50, 70, token=9),
        early_drop,
        late_drop,
    ]
    assert permit_bars(marks) == [Bar("n1 worker", 7, 10, 40), Bar("n2 worker", 7, 30, 45), Bar("n1 worker", 9, 50, 60)]
