"""The permit page: whole or not at all, also while it is being written, and across processes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator

import pytest

from cluster.clock import boottime_ns
from cluster.core.ids import Instant, Term
from cluster.core.role import ExecutionPermit
from cluster.permit import NO_PERMIT, PermitPage, PermitSeen


@pytest.fixture
def page() -> Iterator[PermitPage]:
    page = PermitPage.create()
    yield page
    page.close()


def permit(token: int, until: int) -> ExecutionPermit:
    return ExecutionPermit(Term(token), Instant(until))


def test_fresh_page_holds_no_permit_and_no_heartbeat(page: PermitPage) -> None:
    assert page.read() == NO_PERMIT
    assert page.beat_at() is None
    assert not page.read().covers(Instant(0))


def test_page_of_zeros_is_not_even_a_consistent_no(page: PermitPage) -> None:
    """Its check cell is wrong, so a page that nobody has ever written cannot pass for one that says token 0."""
    assert list(page._cells[:5]) == [0, 0, 0, 0, 0] and page.read() == NO_PERMIT


def test_granted_permit_is_seen_with_its_end(page: PermitPage) -> None:
    page.grant(permit(7, 1000))
    assert page.read() == PermitSeen(Term(7), Instant(1000))
    page.grant(permit(7, 2000))
    assert page.read().act_until == 2000


@pytest.mark.parametrize(("now", "covered"), [(0, True), (999, True), (1000, False), (1001, False)])
def test_permit_covers_every_instant_before_its_end_and_none_from_then_on(
    page: PermitPage, now: int, covered: bool
) -> None:
    page.grant(permit(7, 1000))
    assert page.read().covers(Instant(now)) is covered


def test_cleared_permit_is_gone(page: PermitPage) -> None:
    page.grant(permit(7, 2**62))
    page.clear()
    assert page.read() == NO_PERMIT and not page.read().covers(Instant(0))


def test_second_mapping_sees_what_the_first_writes(page: PermitPage) -> None:
    worker = PermitPage(os.dup(page.fd))
    page.grant(permit(7, 1000))
    assert worker.read().token == 7
    worker.beat(Instant(123))
    assert page.beat_at() == 123
    page.forget_beat()
    assert page.beat_at() is None and worker.read().token == 7
    worker.close()


@pytest.mark.parametrize("stop_after", range(1, 5))
def test_writer_that_dies_at_any_store_leaves_no_permit(page: PermitPage, stop_after: int) -> None:
    """The stores of `_write`, cut off after each but the last."""
    page.grant(permit(7, 2**62))
    seq = page._cells[0]
    token, until = 8, 2**62 + 1
    stores = [(0, seq + 1), (1, token), (2, until), (3, token ^ until ^ 0x5EED_BA70)]
    for cell, value in stores[:stop_after]:
        page._cells[cell] = value
    assert page.read() == NO_PERMIT


def test_cells_that_do_not_belong_together_are_no_permit(page: PermitPage) -> None:
    page.grant(permit(7, 1000))
    page._cells[2] = 2000  # an end that nobody granted
    assert page.read() == NO_PERMIT


def test_token_that_no_cell_can_hold_leaves_no_permit_behind(page: PermitPage) -> None:
    page.grant(permit(7, 2**62))
    with pytest.raises(ValueError):
        page.grant(permit(2**64, 1))
    assert page.read() == NO_PERMIT
    page.grant(permit(7, 2**62))
    assert page.read() == NO_PERMIT, "closed for good: the keeper that did that is not to be trusted again"


def _grant_for_ever(fd: int, stop_at: int) -> None:
    page = PermitPage(fd)
    n = 1
    while boottime_ns() < stop_at:
        page.grant(permit(n, n * 1000))
        n = n % 1_000_000 + 1
        page.clear()


def test_reader_never_sees_half_of_a_grant_of_another_process(page: PermitPage) -> None:
    stop_at = boottime_ns() + 300_000_000
    writer = multiprocessing.get_context("fork").Process(target=_grant_for_ever, args=(page.fd, stop_at))
    writer.start()
    seen = torn = 0
    while boottime_ns() < stop_at:
        permit_seen = page.read()
        if permit_seen.token:
            seen += 1
            torn += permit_seen.act_until != permit_seen.token * 1000
    writer.join(10)
    assert writer.exitcode == 0
    assert torn == 0 and seen > 100
