"""The page that tells a failure: one HTML file that needs nothing else, neither network nor script.

What is told is chosen in `explain.py`; here it is only drawn. Places in the figure are fractions of its width, so that
zooming is a matter of that width alone. Everything that comes from a run is escaped.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import NamedTuple

from chaos.sim.engine import MS
from chaos.sim.explain import Case, Moment, lanes
from chaos.sim.plan import Plan
from chaos.sim.story import FAULTS, KINDS, Mark
from chaos.sim.words import violation_told

_STATIC = files(__package__).joinpath("static")
_PAGE = Template(_STATIC.joinpath("timeline.html").read_text("utf-8"))
_CSS = _STATIC.joinpath("timeline.css").read_text("utf-8")
_JS = _STATIC.joinpath("timeline.js").read_text("utf-8")

HIDDEN = ("request", "link", "stream", "watch", "replication", "event", "commit", "journal", "fill", "feed")
"""Kinds that are drawn only on request; the messages of the orders concerned are drawn all the same."""
ZOOMS = (1, 2, 4, 8, 16, 64)
LANE, AXIS = 44, 26  # px
COLOURS = 6
LEVELS = (22, 10, 34)  # heights in a lane at which badges that would hide each other stand
BADGE = 1.6  # percent of the width


class Origin(NamedTuple):
    """Where a run comes from. seed: by which it is known, which a shortened one need not live by; None: by its script.
    script: where its plan is stored."""

    seed: int | None
    script: Path


def write_timeline(path: Path, plan: Plan, case: Case, problems: Sequence[str], origin: Origin) -> None:
    """case: of a traced run of `plan`. problems: what it broke, the one to explain first."""
    path.write_text(page(plan, case, problems, origin), encoding="utf-8")


def page(plan: Plan, case: Case, problems: Sequence[str], origin: Origin) -> str:
    marks = case.marks
    figure = _Figure(case, marks)
    says = f"<p class=says>The checker says: <code>{escape(case.violation)}</code></p>" if problems else ""
    others = "".join(f"<p class=says>Also: <code>{escape(violation_told(p))}</code></p>" for p in problems[1:4])
    if len(problems) > 4:
        others += f"<p class=says>And {len(problems) - 4} more.</p>"
    return _PAGE.substitute(
        title=escape(": ".join(filter(None, (case.invariant, case.headline)))),
        css=_CSS,
        js=_JS,
        calm="" if problems else " class=calm",
        headline=escape(case.headline),
        sentence=_first_wrong(case) if problems else "",
        violation=says,
        others=others,
        script=_items(case.script),
        known_by=escape(_known_by(plan, origin)),
        concerned=_concerned(case, marks),
        moments="".join(_row(m, case) for m in case.moments),
        left_out=_left_out(plan, case),
        ring=f"; the red ring is {_flag(case)}" if case.wrong is not None else "",
        controls=_controls(),
        names="".join(f"<div>{escape(lane)}</div>" for lane in figure.lanes),
        wrong_at=f"{figure.wrong_at:.3f}",
        figure=figure.svg(),
        command=escape(again(origin.script)),
        json=escape(plan.to_json()),
        count=len(marks),
        log="".join(map(_log_row, marks)),
    )


def again(script: Path) -> str:
    """The command that lives it again, from where this one ran."""
    return f"baton simulate --replay {shlex.quote(str(script))}"


def _first_wrong(case: Case) -> str:
    if case.wrong is None:
        return "<p>No single step is known to be wrong; what should have happened did not.</p>"
    told = escape(f"{case.wrong.text}. {_why(case)}")
    return f"<p>{_flag(case).capitalize()}, at {_ms(case.wrong.at)} ms: {told}</p>"


def _flag(case: Case) -> str:
    """Some things are known only when somebody looks; what led to them is not one step."""
    return "where it was seen" if case.wrong is not None and case.wrong.kind == "wrong" else "the first wrong step"


def _known_by(plan: Plan, origin: Origin) -> str:
    if origin.seed is None:
        return f"the script {origin.script.name}, on the network of seed {plan.seed}"
    if plan.seed == origin.seed:
        return f"seed {origin.seed}"
    return f"seed {origin.seed}, shortened, on the network of seed {plan.seed}; only the script below gives it again"


def _left_out(plan: Plan, case: Case) -> str:
    """What of the script is not among the moments, and why."""
    ordered = len(plan.faults) + len(plan.traps)
    never = max(0, ordered - case.faults)
    told = f"{never} of the {ordered} faults of the script never struck: there was nothing to strike. " if never else ""
    if case.left_out:
        told += f"Left out: {case.left_out} of the {case.faults} faults that struck; the log below has all."
    return told


def _items(texts: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(t)}</li>' for t in texts)}</ul>"


def _tint(token: int, case: Case) -> str:
    return f"c{case.tokens.index(token) % COLOURS}" if token in case.tokens else ""


def _row(moment: Moment, case: Case) -> str:
    m = moment.mark
    wrong = m is case.wrong
    flag = f" <span class=flag>{_flag(case)}</span>" if wrong else ""
    flag += f" {escape(_why(case))}" if wrong else ""
    return (
        f'<tr{" class=wrong id=wrong" if wrong else ""}><td class=n><span class="key {_tint(m.token, case)}">'
        f"{moment.number}</span></td><td class=n>{_ms(m.at)}</td>"
        f"<td class=who>{escape(m.lane)}</td><td>{escape(_sentence(m))}{flag}</td></tr>\n"
    )


def _why(case: Case) -> str:
    return f"{case.why[:1].upper()}{case.why[1:]}." if case.why else ""


def _sentence(m: Mark) -> str:
    """With the length of what lasts."""
    if m.to:
        fate = f"; it arrives {(m.until - m.at) / MS:.0f} ms later" if m.until else "; it is lost or held back"
        return f"{m.lane} to {m.to}: {m.text.strip()}{fate}"
    length = f", for {(m.until - m.at) / MS:.0f} ms" if m.until > m.at and m.kind in ("fault", "pause") else ""
    ends = f", for {(m.until - m.at) / MS:.0f} ms if it is not renewed" if m.until > m.at and m.kind == "permit" else ""
    return m.text + length + ends


def _log_row(m: Mark) -> str:
    arrow = f" → {m.to}" if m.to else ""
    where, kind, text = escape(m.lane + arrow), escape(m.kind), escape(m.text)
    return f"<tr><td class=n>{m.at / MS:.3f}</td><td>{where}</td><td>{kind}</td><td>{text}</td></tr>\n"


# -- who and what it is about ------------------------------------------------------------------------------------------


def _concerned(case: Case, marks: Sequence[Mark]) -> str:
    """Tokens and orders, as far as the violation; nothing if none is known."""
    marks = [m for m in marks if m.at <= case.until]
    rows = [_token_row(token, case, marks) for token in case.tokens]
    rows += [_order_row(order, case, marks) for order in case.orders]
    if not rows:
        return ""
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return (
        "<section><h2>The tokens and orders that it is about</h2><div class=scroll><table><thead><tr><th></th>"
        f"<th>whose</th><th>since</th><th>what became of it</th></tr></thead>"
        f"<tbody>{body}</tbody></table></div></section>"
    )


def _token_row(token: int, case: Case, marks: Sequence[Mark]) -> list[str]:
    given = next((m for m in marks if m.kind == "lease" and m.token == token), None)
    over = next((m for m in marks if m.kind == "lease" and m.token == token and "is over" in m.text), None)
    ends = [bar.until for bar in permit_bars(marks) if bar.token == token]
    whose = given.text.partition("lease to ")[2].partition(",")[0] if given else ""
    became = [f"lease over at {_ms(over.at)}" if over else "lease not over"]
    if ends:
        became.append(f"leave to send until {_ms(max(ends))}")
    key = f'<span class="key {_tint(token, case)}">{token}</span>'
    return [
        f"token {key}",
        escape(whose),
        f"given at {_ms(given.at) if given else '?'}",
        escape("; ".join(became)),
    ]


def _order_row(order: str, case: Case, marks: Sequence[Mark]) -> list[str]:
    ours = [m for m in marks if m.order == order and not m.to]
    decided = next((m for m in ours if m.decision), None)
    tokens = sorted({m.token for m in ours if m.kind == "sent"})
    key = "".join(f' <span class="key {_tint(t, case)}">{t}</span>' for t in tokens)
    sender = ", ".join(dict.fromkeys(m.lane.partition(" ")[0] for m in ours if m.kind in ("decided", "sent")))
    what = f"decision {decided.decision}, at {_ms(decided.at)}" if decided else ""
    became = "; ".join(_became(ours)) or "it never left"
    return [f"order <code>{escape(order)}</code>", f"{escape(sender)}{key}", escape(what), escape(became)]


def _became(ours: Sequence[Mark]) -> Iterator[str]:
    """Of one order: how often each thing happened to it, and when first."""
    happened: dict[str, list[int]] = {}
    for m in ours:
        for what, begins in _HAPPENS.items():
            if m.text.startswith(begins):
                happened.setdefault(what, []).append(m.at)
    claimed = any(m.kind == "claim" and m.text.endswith("granted") for m in ours)
    if "sent" in happened and not claimed:
        yield "no claim was granted for it"
    for what, times in happened.items():
        if len(times) > MANY:
            yield f"{what} {len(times)} times from {_ms(times[0])} to {_ms(times[-1])}"
        else:
            yield from (f"{what} at {_ms(at)}" for at in times)


MANY = 3
_HAPPENS = {
    "sent": "the bytes of order",
    "accepted": "the venue accepts order",
    "refused": "the venue refuses order",
    "no answer": "no answer for order",
    "cancel sent": "a cancel of order",
}


def _ms(at: int) -> str:
    """From the start of the run, as everywhere on the page."""
    return f"{at / MS:.1f}"


def _controls() -> str:
    zooms = "".join(
        f"<label><input type=radio name=zoom id=z{z}{' checked' if z == ZOOMS[0] else ''}>×{z}</label>" for z in ZOOMS
    )
    kinds = "".join(
        f"<label><input type=checkbox id=k-{k}{'' if k in HIDDEN else ' checked'}>{escape(words)}</label>"
        for k, words in KINDS.items()
    )
    hide = "".join(f".figure:has(#k-{k}:not(:checked)) .k-{k}:not(.ours){{display:none}}" for k in KINDS)
    return (
        f"<style>{hide}</style><fieldset><legend>Zoom</legend>{zooms}</fieldset>"
        f"<fieldset><legend>Show</legend>{kinds}</fieldset>"
    )


# -- the figure --------------------------------------------------------------------------------------------------------


class Bar(NamedTuple):
    """One token's permits of one node, joined."""

    lane: str
    token: int
    at: int
    until: int


def permit_bars(marks: Sequence[Mark]) -> list[Bar]:
    """From the first permit of a token to the end of the last, or to where it was dropped, or its node's keeper died.
    In the lane of the worker, which sends by it."""
    bars: dict[tuple[str, int], Bar] = {}
    for m in marks:
        if m.kind == "permit":
            node = m.lane.partition(" ")[0]
            bar = bars.setdefault((node, m.token), Bar(f"{node} worker", m.token, m.at, m.until))
            bars[node, m.token] = bar._replace(until=max(bar.until, m.until) if m.until else min(bar.until, m.at))
        elif m.kind == "death" and m.text.partition(" is dead")[1]:
            for key, bar in bars.items():
                if bar.lane.partition(" ")[0] == m.lane.partition(" ")[0]:
                    bars[key] = bar._replace(until=min(bar.until, m.at))
    return list(bars.values())


class _Figure:
    def __init__(self, case: Case, marks: Sequence[Mark]) -> None:
        self.case, self.marks = case, marks
        self.lanes = lanes(marks)
        self._row = {lane: i for i, lane in enumerate(self.lanes)}
        length = max(case.until - case.since, MS)
        self._from, self._to = case.since - length // 25, case.until + length // 12
        self.height = 2 * AXIS + LANE * len(self.lanes)
        bars = permit_bars(marks)
        self._permits = [b for b in bars if b.until >= self._from and b.at <= self._to and b.lane in self._row]
        self.wrong_at = self._x(case.wrong.at) if case.wrong is not None else 100.0

    def _x(self, at: int) -> float:
        return 100 * (at - self._from) / (self._to - self._from)

    def _y(self, lane: str) -> float:
        return AXIS + LANE * self._row.get(lane, self._row[FAULTS])

    def _within(self, m: Mark) -> bool:
        return m.at <= self._to and max(m.at, m.until) >= self._from

    def svg(self) -> str:
        shown = [m for m in self.marks if self._within(m)]
        parts = [*self._ground(), *self._bars(), *(x for m in shown for x in self._span(m))]
        parts += self._bar_names()
        parts += [x for m in shown if m.to for x in self._arrow(m)]
        parts += [x for m in shown if not m.to for x in self._dot(m)]
        parts += self._badges()
        return (
            f'<svg height="{self.height}" role="img" aria-label="Lanes of the actors over time">'
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            'orient="auto-start-reverse"><path d="M0 0 8 4 0 8z"/></marker>'
            '<pattern id="frozen" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
            '<rect width="3" height="6" style="fill:var(--ice)"/></pattern></defs>'
            f"{''.join(parts)}</svg>"
        )

    def _ground(self) -> Iterator[str]:
        for lane in self.lanes:
            y = self._y(lane)
            yield f'<line class="lane" x1="0" x2="100%" y1="{y}" y2="{y}"/>'
        step = _round_step((self._to - self._from) / MS / 8)
        at = max(0, -(-self._from // (step * MS)) * step)
        while at * MS <= self._to:
            x = self._x(at * MS)
            yield f'<line class="grid" x1="{x:.3f}%" x2="{x:.3f}%" y1="{AXIS}" y2="{self.height - AXIS}"/>'
            yield f'<text class="tick" x="{x:.3f}%" y="17" text-anchor="middle">{at}</text>'
            at += step
        if self.case.wrong is not None:
            x = self.wrong_at
            yield f'<line class="since-wrong" x1="{x:.3f}%" x2="{x:.3f}%" y1="{AXIS}" y2="{self.height - AXIS}"/>'

    def _bars(self) -> Iterator[str]:
        for bar in self._permits:
            span = f"token {bar.token}: a permit from {_ms(bar.at)} to {_ms(bar.until)} ms"
            yield self._rect(bar.at, bar.until, bar.lane, f"bar k-permit {_tint(bar.token, self.case)}", span)

    def _bar_names(self) -> Iterator[str]:
        """Above whatever else lies on the bars."""
        for bar in self._permits:
            x, y, tint = max(self._x(bar.at), 0), self._y(bar.lane) + LANE - 7, _tint(bar.token, self.case)
            yield f'<text class="bar-text k-permit {tint}" x="{x:.3f}%" dx="4" y="{y}">token {bar.token}</text>'

    def _rect(self, since: int, until: int, lane: str, style: str, title: str) -> str:
        left, right = max(self._x(since), 0), min(self._x(until), 100)
        return (
            f'<rect class="{style}" x="{left:.3f}%" width="{max(right - left, 0.05):.3f}%" y="{self._y(lane) + 3}" '
            f'height="{LANE - 6}" rx="3"><title>{escape(title)}</title></rect>'
        )

    def _span(self, m: Mark) -> Iterator[str]:
        if m.kind == "pause" and "runs again" not in m.text:
            later = (x.at for x in self.marks if x.lane == m.lane and x.at > m.at and x.kind in ("pause", "death"))
            yield self._rect(
                m.at, min(m.until or self._to, next(later, self._to)), m.lane, "ice k-pause", self._title(m)
            )
        elif m.kind == "fault" and m.until > m.at:
            yield self._rect(m.at, m.until, FAULTS, "broken k-fault", self._title(m))
            x, y, what = max(self._x(m.at), 0), self._y(FAULTS) + LANE - 7, escape(re.split("[:,]", m.text)[0])
            yield f'<text class="broken-text k-fault" x="{x:.3f}%" dx="14" y="{y}">{what}</text>'

    def _title(self, m: Mark) -> str:
        return f"{_ms(m.at)} ms, {m.lane}: {_sentence(m)}"

    def _arrow(self, m: Mark) -> Iterator[str]:
        if m.lane not in self._row or m.to not in self._row:
            return
        ours = " ours" if m.order in self.case.orders else ""
        tint = _tint(next((x.token for x in self.marks if ours and x.order == m.order and x.token), 0), self.case)
        below = self._y(m.lane) < self._y(m.to)
        y1, y2 = self._y(m.lane) + LANE / 2, self._y(m.to) + LANE / 2 + (-9 if below else 9)
        x1, x2 = self._x(m.at), self._x(m.until or m.at)
        if not m.until:  # it ends on its way
            y2 = (y1 + y2) / 2
        yield (
            f'<line class="arrow{ours} k-{m.kind} {tint}{"" if m.until else " lost"}" x1="{x1:.3f}%" y1="{y1}" '
            f'x2="{x2:.3f}%" y2="{y2}" marker-end="url(#head)"><title>{escape(self._title(m))}</title></line>'
        )

    def _dot(self, m: Mark) -> Iterator[str]:
        if m.lane in self._row:
            no = " no" if m.kind == "refused" or "REFUSED" in m.text else ""
            yield (
                f'<circle class="dot{no} k-{m.kind} {_tint(m.token, self.case)}" cx="{self._x(m.at):.3f}%" '
                f'cy="{self._y(m.lane) + LANE / 2}" r="3.5"><title>{escape(self._title(m))}</title></circle>'
            )

    def _badges(self) -> Iterator[str]:
        """The numbers of the story, where they happened."""
        taken: dict[tuple[str, int], float] = {}
        for moment in self.case.moments:
            m, x = moment.mark, self._x(moment.mark.at)
            lane = m.lane if m.lane in self._row else FAULTS
            free = [level for level in range(len(LEVELS)) if x - taken.get((lane, level), -BADGE) >= BADGE]
            level = free[0] if free else len(LEVELS) - 1
            taken[lane, level] = x
            y = self._y(lane) + LEVELS[level]
            if m is self.case.wrong:
                yield f'<circle class="ring" cx="{x:.3f}%" cy="{y}" r="14"/>'
            yield (
                f'<circle class="badge k-{m.kind} {_tint(m.token, self.case)}" cx="{x:.3f}%" cy="{y}" r="8.5">'
                f"<title>{escape(self._title(m))}</title></circle>"
                f'<text class="badge-text k-{m.kind}" x="{x:.3f}%" y="{y + 4}">{moment.number}</text>'
            )


def _round_step(ms: float) -> int:
    """1, 2 or 5 times a power of ten, at least `ms`."""
    power = 1
    while True:
        for n in (1, 2, 5):
            if n * power >= ms:
                return n * power
        power *= 10
