"""A node that was away until the others have pruned what it lacks: it comes back by snapshot, with an equal book."""

from __future__ import annotations

import json

import pytest

from chaos.check.journals import journal_evidence
from tests.e2e.conftest import Start
from tests.support.e2e import busy_options, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

EVERY, KEEP = 1000, 200


def test_node_that_lacks_pruned_entries_catches_up_by_snapshot(drill: Start) -> None:
    d = drill(
        busy_options(
            interval_s="0.02",
            overlay={"replication": {"snapshot_every_entries": EVERY, "keep_entries": KEEP}},
            etcd=1,
            feed="synthetic",
        )
    )
    leader, token = d.healthy()
    standby = next(n for n in d.nodes if n != leader)
    until("the first snapshot", lambda: d.snapshots(leader))
    with d.lost(standby):
        has = journal_evidence(standby, d.cluster.journal_dir(standby) / "journal.db", d.order_tag).last_index
        until(f"entries after {has} are pruned", lambda: max(d.snapshots(leader)) > has + EVERY + KEEP)
    assert d.healthy() == (leader, token)
    installed = [x["log_index"] for x in d.events(standby, "snapshot_installed")]
    assert installed and installed[-1] > has
    d.trades_on()
    # And it is fit to lead: all books are rebuilt from what stands on the disk.
    d.kill_everything()
    d.start()
    d.healthy()
    found = d.holds()
    assert len(found.record.orders) > EVERY / 12
    assert d.bugs() == []
    bases = {n: journal_evidence(n, d.cluster.journal_dir(n) / "journal.db", d.order_tag).base for n in d.nodes}
    assert min(bases.values()) > 0, json.dumps(bases)
