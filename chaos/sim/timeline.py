"""The page that tells a failure: one HTML file that needs nothing else, neither network nor script.

What is told is chosen in `explain.py`; here it is only drawn. Places in the figure are fractions of its width, so that
zooming is a matter of that width alone. Everything that comes from a run is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import NamedTuple

from chaos.sim.engine import MS
from chaos.sim.explain import Case, Moment, explain, lanes
from chaos.sim.plan import Plan
from chaos.sim.story import FAULTS, KINDS, Mark

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


def write_timeline(path: Path, plan: Plan, marks: Sequence[Mark], problems: Sequence[str], *, script: Path) -> None:
    """marks: of a traced run of `plan`. problems: what it broke, the one to explain first. script: where the plan is
    stored."""
    case = explain(plan, sorted(marks, key=lambda m: m.at), problems)
    path.write_text(page(plan, sorted(marks, key=lambda m: m.at), problems, case, script.name), encoding="utf-8")


def page(plan: Plan, marks: Sequence[Mark], problems: Sequence[str], case: Case, script: str) -> str:
    figure = _Figure(case, marks)
    sentence = ""
    if case.wrong is not None:
        after = (case.wrong.at - case.since) / MS
        told = escape(f"{case.wrong.text}. {_why(case)}")
        sentence = f"<p>The first wrong step, at {after:.1f} ms: {told}</p>"
    says = f"<p class=says>The checker says: <code>{escape(case.violation)}</code></p>" if problems else ""
    others = "".join(f"<p class=says>Also: <code>{escape(p)}</code></p>" for p in problems[1:4])
    return _PAGE.substitute(
        title=escape(": ".join(filter(None, (case.invariant, case.headline)))),
        css=_CSS,
        js=_JS,
        headline=escape(case.headline),
        sentence=sentence,
        violation=says,
        others=others,
        script=_items(case.script),
        seed=plan.seed,
        concerned=_concerned(case, marks),
        moments="".join(_row(m, case) for m in case.moments),
        origin=f"{case.since / MS:.1f}",
        controls=_controls(),
        names="".join(f"<div>{escape(lane)}</div>" for lane in figure.lanes),
        wrong_at=f"{figure.wrong_at:.3f}",
        figure=figure.svg(),
        file=escape(script),
        json=escape(plan.to_json()),
        count=len(marks),
        log="".join(map(_log_row, marks)),
    )


def _items(texts: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(t)}</li>' for t in texts)}</ul>"


def _tint(token: int, case: Case) -> str:
    return f"c{case.tokens.index(token) % COLOURS}" if token in case.tokens else ""


def _row(moment: Moment, case: Case) -> str:
    m = moment.mark
    wrong = m is case.wrong
    flag = " <span class=flag>the first wrong step</span>" if wrong else ""
    flag += f" {escape(_why(case))}" if wrong else ""
    return (
        f'<tr{" class=wrong id=wrong" if wrong else ""}><td class=n><span class="key {_tint(m.token, case)}">'
        f"{moment.number}</span></td><td class=n>{moment.after / MS:.1f}</td>"
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
        "<section><h2>Whom and what it is about</h2><div class=scroll><table><thead><tr><th></th><th>whose</th>"
        f"<th>what</th><th>what became of it</th></tr></thead><tbody>{body}</tbody></table></div></section>"
    )


def _token_row(token: int, case: Case, marks: Sequence[Mark]) -> list[str]:
    given = next((m for m in marks if m.kind == "lease" and m.token == token), None)
    over = next((m for m in marks if m.kind == "lease" and m.token == token and "is over" in m.text), None)
    ends = [bar.until for bar in permit_bars(marks) if bar.token == token]
    whose = given.text.partition("lease to ")[2].partition(",")[0] if given else ""
    became = [f"lease over at {_ms(over.at, case)}" if over else "lease not over"]
    if ends:
        became.append(f"leave to send until {_ms(max(ends), case)}")
    key = f'<span class="key {_tint(token, case)}">{token}</span>'
    return [
        f"token {key}",
        escape(whose),
        f"given at {_ms(given.at, case) if given else '?'}",
        escape("; ".join(became)),
    ]


def _order_row(order: str, case: Case, marks: Sequence[Mark]) -> list[str]:
    ours = [m for m in marks if m.order == order and not m.to]
    decided = next((m for m in ours if m.decision), None)
    tokens = sorted({m.token for m in ours if m.kind == "sent"})
    key = "".join(f' <span class="key {_tint(t, case)}">{t}</span>' for t in tokens)
    sender = ", ".join(dict.fromkeys(m.lane.partition(" ")[0] for m in ours if m.kind == "sent"))
    became = [f"{m.kind} at {_ms(m.at, case)}" for m in ours if m.kind in ("sent", "accepted", "refused")]
    what = f"of decision {decided.decision}" if decided else ""
    return [f"order <code>{escape(order)}</code>", f"{escape(sender)}{key}", escape(what), escape("; ".join(became))]


def _ms(at: int, case: Case) -> str:
    return f"{(at - case.since) / MS:.1f}"


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
        at = -(-(self._from - self.case.since) // (step * MS)) * step
        while self.case.since + at * MS <= self._to:
            x = self._x(self.case.since + at * MS)
            yield f'<line class="grid" x1="{x:.3f}%" x2="{x:.3f}%" y1="{AXIS}" y2="{self.height - AXIS}"/>'
            yield f'<text class="tick" x="{x:.3f}%" y="17" text-anchor="middle">{at}</text>'
            at += step
        if self.case.wrong is not None:
            x = self.wrong_at
            yield f'<line class="since-wrong" x1="{x:.3f}%" x2="{x:.3f}%" y1="{AXIS}" y2="{self.height - AXIS}"/>'

    def _bars(self) -> Iterator[str]:
        for bar in self._permits:
            span = f"token {bar.token}: a permit from {_ms(bar.at, self.case)} to {_ms(bar.until, self.case)} ms"
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
        return f"{_ms(m.at, self.case)} ms, {m.lane}: {_sentence(m)}"

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
