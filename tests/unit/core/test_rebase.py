"""Which journal may lead on an etcd that was restored: whatever came with the backup, and whoever is asked in whatever
order, nobody leads who lacks what another one has, and no token comes twice."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.sim.etcd import Backup, EtcdSpec
from cluster import transactions as tx
from cluster.core import actions as act
from cluster.core.ids import Instant, JournalId, LogIndex, NodeId, Term
from cluster.core.lease import View
from cluster.core.rebase import BUMP_MIN, End, Kept, Plan, Rebased, RebaseRefused, plan
from cluster.etcd.model import Txn
from cluster.keys import Keys, dump, rebased_of
from cluster.mirror import Mirror
from tests.support.etcd_spec import Clock

KEYS = Keys("c1")
TTL = 1_500_000_000
NAMES = ("n1", "n2", "n3")


def identity(node: str) -> tx.Identity:
    return tx.Identity(node, f"i-{node}", f"h-{node}", TTL)


class World:
    """Nodes that have led and followed on an etcd, all stopped by now, and that etcd as a backup made it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.etcd = EtcdSpec(self.clock, cluster_id=0xA)
        self.nodes: dict[str, Kept] = {n: self.kept(n, 0, 0, 0) for n in NAMES}
        self.backup: Backup | None = None
        self.done: set[str] = set()  # whose journals have taken the restored etcd

    def kept(self, node: str, term: int, index: int, highest: int) -> Kept:
        end = End(Term(term), LogIndex(index))
        return Kept(NodeId(node), JournalId(f"j-{node}"), end, Term(highest), self.etcd.cluster_id)

    def send(self, txn: Txn) -> int:
        """Its revision; 0: refused."""
        answer = self.etcd.txn(txn.compare, txn.success, txn.failure)
        return answer.revision if answer.succeeded else 0

    def see(self) -> tuple[View, Rebased]:
        mirror = Mirror(KEYS, TTL)
        mirror.apply(self.etcd.read(KEYS.prefix), self.etcd.cluster_id)
        return mirror.view, rebased_of(mirror.raw.get(KEYS.rebased))

    # -- before --------------------------------------------------------------------------------------------------

    def lead(self, node: str, insync: tuple[str, ...], entries: int = 3) -> int:
        """A term of `node`, from its acquire to the end of its lease; all of `insync` have its entries."""
        view, _ = self.see()
        lease = self.etcd.lease_grant(2)
        seen, members = view.tenure.token if view.tenure else 0, {NodeId(n): JournalId(f"j-{n}") for n in insync}
        request = act.Acquire(1, 1, lease.id, Term(seen), view.insync.mod_revision, members)
        token = self.send(tx.acquire(KEYS, identity(node), request))
        assert token
        index = self.nodes[node].end.index + entries
        for n in insync:
            self.nodes[n] = replace(self.nodes[n], end=End(Term(token), LogIndex(index)), highest_term=Term(token))
        self.etcd.lease_revoke(lease.id)
        return token

    def save(self) -> None:
        self.backup = self.etcd.snapshot()

    def restore(self, *, bump: int = 1000, cluster_id: int | None = 0xB) -> None:
        assert self.backup is not None
        self.etcd.restore(self.backup, bump, cluster_id)

    # -- what the command does -----------------------------------------------------------------------------------

    def plan(self, node: str, *, lead: bool = False) -> Plan:
        return plan(*self.see(), self.nodes[node], lead=lead)

    def rebase(self, node: str, *, lead: bool = False, broken_off: bool = False) -> int:
        """The revision of what it wrote; 0: nothing. broken_off: before the journal learned of it."""
        seen, _ = self.see()
        todo, revision = self.plan(node, lead=lead), 0
        if todo.rebased is not None:
            revision = self.send(tx.rebase(KEYS, identity(node), JournalId(f"j-{node}"), seen, todo.rebased))
            assert revision
        if not broken_off:
            self.nodes[node] = replace(self.nodes[node], etcd_cluster_id=todo.cluster_id)
            self.done.add(node)
        return revision

    def may_lead(self) -> list[str]:
        """Whose journals `insync` names."""
        view, _ = self.see()
        return [n for n in NAMES if view.insync.names(NodeId(n), JournalId(f"j-{n}"))]


@pytest.fixture
def world() -> World:
    """n3 was in sync when the backup was taken, and not when etcd was lost; n1 then led once more, n2 has it all."""
    w = World()
    w.lead("n3", NAMES)
    w.save()
    w.lead("n1", ("n1", "n2"))
    w.restore()
    return w


def test_the_restored_insync_elects_nobody_once_a_journal_has_taken_this_etcd(world):
    assert world.may_lead() == ["n1", "n2", "n3"]
    assert world.rebase("n3")
    view, rebased = world.see()
    assert (world.may_lead(), view.insync.members) == ([], {})
    assert view.insync.mod_revision == rebased.mod_revision  # a key that is there and names nobody, not no key
    assert (rebased.cluster_id, rebased.ends, rebased.lead) == (0xB, {"n3": world.nodes["n3"].end}, None)


def test_the_named_one_leads_next_with_a_token_above_every_other(world):
    for n in NAMES:
        world.rebase(n)
    token = world.rebase("n2", lead=True)
    view, rebased = world.see()
    assert (view.tenure.token, view.tenure.node, rebased.mod_revision, rebased.lead) == (token, "n2", token, "n2")
    assert token > max(kept.highest_term for kept in world.nodes.values())
    assert world.may_lead() == ["n2"]
    (resigned,) = tx.resign(KEYS, act.Resign(0, Term(token), "etcd rebased", "ann", None), tx.Dates(1, Instant(1)))[1:]
    assert world.send(resigned)
    assert world.see()[0].ended_properly
    assert world.lead("n2", ("n2", "n1")) > token


def test_a_journal_that_ends_lower_than_a_known_one_is_not_named_to_lead(world):
    world.rebase("n1")
    with pytest.raises(RebaseRefused, match=r"the journal of n1 ends at entry 6 of term \d+, .*--lead on n1"):
        world.plan("n3", lead=True)
    world.rebase("n2", lead=True)  # as high as n1


def test_a_journal_that_ends_higher_than_the_named_one_says_so_before_anybody_leads(world):
    world.rebase("n3", lead=True)
    with pytest.raises(RebaseRefused, match=r"n3 was named to lead, .*Start no node, and run this here with --lead"):
        world.plan("n1")
    world.rebase("n1", lead=True)
    assert world.may_lead() == ["n1"]
    assert world.plan("n3") == world.plan("n2") == Plan(0xB)


def test_who_comes_once_somebody_leads_only_has_to_remember_this_etcd(world):
    world.rebase("n2", lead=True)
    world.lead("n2", ("n2",))
    before = world.etcd.revision
    assert world.rebase("n1") == world.rebase("n3") == 0
    assert (world.etcd.revision, world.may_lead()) == (before, ["n2"])
    assert world.nodes["n1"].etcd_cluster_id == 0xB


def test_once_somebody_has_led_another_is_not_named_before_who_was_there_has_been_asked(world):
    """n1 is started too early, leads, and is stopped; the journal of n2 knows nothing of it."""
    world.rebase("n1", lead=True)
    token = world.lead("n1", ("n1",))
    with pytest.raises(RebaseRefused, match=f"n1 has led on this etcd .*token {token}: .* without --lead first"):
        world.plan("n2", lead=True)
    world.rebase("n2")  # it was not there: this names nobody, and changes nothing
    with pytest.raises(RebaseRefused, match="without --lead first"):
        world.plan("n2", lead=True)
    world.rebase("n1")
    with pytest.raises(RebaseRefused, match=r"the journal of n1 ends at .*--lead on n1"):
        world.plan("n2", lead=True)
    world.rebase("n1", lead=True)


def test_a_choice_whose_token_a_journal_has_seen_already_falls(world):
    world.rebase("n2", lead=True)
    world.nodes["n3"] = replace(world.nodes["n3"], highest_term=Term(world.etcd.revision + 5))
    with pytest.raises(RebaseRefused, match="--bump-revision"):
        world.plan("n3")
    for _ in range(10):
        world.etcd.put("/elsewhere", b"")
    world.rebase("n3")
    view, rebased = world.see()
    assert (world.may_lead(), rebased.lead) == ([], None)
    assert set(rebased.ends) == {"n2", "n3"}
    assert world.rebase("n2", lead=True) > world.nodes["n3"].highest_term
    assert view.cluster_id == 0xB


@pytest.mark.parametrize("lead", [False, True])
def test_an_etcd_whose_tokens_would_repeat_is_refused_with_a_bump_that_is_enough(world, lead):
    world.restore(bump=0)
    highest = world.nodes["n1"].highest_term
    with pytest.raises(RebaseRefused) as e:
        world.plan("n1", lead=lead)
    again = "--initial-cluster-token that was never used, and run this on every node again"
    for part in (f"revision {world.etcd.revision} ", f"term {highest},", f"--bump-revision {BUMP_MIN} --mark", again):
        assert part in str(e.value)
    world.nodes["n1"] = replace(world.nodes["n1"], highest_term=Term(world.etcd.revision + 123_456_789))
    with pytest.raises(RebaseRefused, match="--bump-revision 1000000000 "):
        world.plan("n1")
    world.nodes["n1"] = replace(world.nodes["n1"], highest_term=Term(world.etcd.revision))
    with pytest.raises(RebaseRefused):
        world.plan("n1")
    world.nodes["n1"] = replace(world.nodes["n1"], highest_term=Term(world.etcd.revision - 1))
    world.rebase("n1")


def test_a_late_node_that_has_seen_more_than_a_cluster_that_trades_is_not_told_to_restore_etcd(world):
    world.nodes["n3"] = replace(world.nodes["n3"], highest_term=Term(world.etcd.revision + 100))
    world.rebase("n1", lead=True)
    lease = world.etcd.lease_grant(3)
    world.etcd.put(KEYS.leader, dump(node="n1", incarnation="i", home="h", ttl_ms=1500, attempt=1, renewal=4), lease.id)
    with pytest.raises(
        RebaseRefused, match=r"If n1, .* does trade .* move this node's data directory away.* Else: restore"
    ):
        world.plan("n3")


@pytest.mark.parametrize("lead", [False, True])
def test_a_leader_key_from_the_backup_is_waited_for_and_ends_within_the_time_named(world, lead):
    lease = world.etcd.lease_grant(3)
    world.etcd.put(KEYS.leader, dump(node="n3", incarnation="i", home="h", ttl_ms=1500, attempt=1, renewal=4), lease.id)
    world.save()
    world.clock.pass_time(60)
    world.restore()
    with pytest.raises(RebaseRefused, match=r"n3 leads on this etcd, .*stop all nodes.* wait 5 s"):
        world.plan("n1", lead=lead)
    world.clock.pass_time(5)
    world.rebase("n1", lead=lead)


@pytest.mark.parametrize("key", [KEYS.leader, KEYS.tenure, KEYS.insync, KEYS.rebased])
def test_what_changes_between_the_look_and_the_deed_stops_the_deed(world, key):
    seen, _ = world.see()
    todo = world.plan("n1", lead=True)
    world.etcd.put(key, b"{}")
    assert not world.send(tx.rebase(KEYS, identity("n1"), JournalId("j-n1"), seen, todo.rebased))


def test_an_etcd_that_never_saw_this_cluster_takes_it_over(world):
    fresh = EtcdSpec(world.clock, cluster_id=0xC)
    world.etcd.restore(fresh.snapshot(), 1000, 0xC)
    world.rebase("n1")
    assert world.see()[0].insync.mod_revision  # else it would be a new cluster, in which anybody may lead
    world.rebase("n1", lead=True)
    assert world.may_lead() == ["n1"]


def test_broken_off_before_the_journal_it_can_be_done_again(world):
    first = world.rebase("n1", lead=True, broken_off=True)
    assert world.nodes["n1"].etcd_cluster_id == 0xA  # its node still stops
    second = world.rebase("n1", lead=True)
    assert second > first
    assert (world.may_lead(), world.see()[0].tenure.token) == (["n1"], second)
    world.rebase("n3", broken_off=True)
    world.rebase("n3")
    assert world.may_lead() == ["n1"]


@pytest.mark.parametrize("junk", [b"junk", b"{}", b'{"etcd":"b","ends":{},"lead":"n1"}', b'{"etcd":11,"ends":[]}'])
def test_a_note_that_cannot_be_read_is_written_anew(world, junk):
    world.etcd.put(KEYS.rebased, junk)
    assert world.see()[1] == Rebased(mod_revision=world.etcd.revision)
    world.rebase("n1")
    assert set(world.see()[1].ends) == {"n1"}


@pytest.mark.parametrize(("node", "cluster_id"), [("n2", None), ("n2", 0xC), ("n3", 0xC)])
def test_a_second_restore_does_not_ask_what_was_said_at_the_first(world, node, cluster_id):
    """None: under the same cluster id, as with disks that were put back. n3 has been down since before the first."""
    for n in NAMES:
        world.rebase(n)
    world.rebase("n1", lead=True)
    world.lead("n1", ("n1", "n2"))
    world.save()
    world.lead("n2", ("n2",))
    world.restore(cluster_id=cluster_id)
    world.rebase(node)
    view, rebased = world.see()
    assert (view.insync.members, rebased.ends) == ({}, {node: world.nodes[node].end})


# -- any order --------------------------------------------------------------------------------------------------------

subsets = st.sets(st.sampled_from(NAMES), min_size=1).map(lambda s: tuple(sorted(s)))
reigns = st.lists(st.tuples(subsets, st.integers(0, 2), st.integers(1, 3)), max_size=3)
deeds = st.lists(st.tuples(st.sampled_from(NAMES), st.booleans(), st.booleans()), max_size=8)


def reign(world: World, terms: list[tuple[tuple[str, ...], int, int]]) -> None:
    """Each leader comes out of the in-sync set before it."""
    for wanted, who, entries in terms:
        able = world.may_lead() or list(NAMES)
        leader = able[who % len(able)]
        world.lead(leader, tuple(sorted({leader, *wanted})), entries)


def try_all(world: World, asked: list[tuple[str, bool, bool]]) -> None:
    for node, lead, broken_off in asked:
        try:
            world.rebase(node, lead=lead, broken_off=broken_off)
        except RebaseRefused:
            continue
        if not broken_off:
            check(world)


def check(world: World) -> None:
    """Of the journals that have taken this etcd, none lacks what another one has and may lead."""
    view, _ = world.see()
    taken = [world.nodes[n] for n in world.done]
    for name in world.done & set(world.may_lead()):
        assert world.nodes[name].end >= max(k.end for k in taken)
        assert view.tenure is not None and view.tenure.token > max(k.highest_term for k in taken)


@settings(max_examples=300)
@given(reigns, reigns, reigns, reigns, deeds, deeds, st.booleans(), st.integers(0, 40))
def test_in_whatever_order_nodes_are_asked_no_journal_leads_that_lacks_what_another_has(
    before, lost, between, lost_again, first, second, new_id, bump
):
    """Two restores one after the other, the second perhaps under the same cluster id, from a backup of any age."""
    world = World()
    reign(world, [(NAMES, 0, 1), *before])
    world.save()
    reign(world, lost)
    world.restore(bump=bump)
    try_all(world, first)
    leads = bool(world.may_lead()) and set(world.may_lead()) <= world.done
    reign(world, between if leads else [])
    world.save()
    reign(world, lost_again if leads else [])
    world.restore(bump=bump, cluster_id=0xC if new_id else None)
    world.done = set()
    try_all(world, second)
    # And there is a way out, whatever was said before.
    for _ in range(500):
        world.etcd.put("/elsewhere", b"")
    try_all(world, [(n, False, False) for n in NAMES])
    longest = max(world.nodes.values(), key=lambda kept: kept.end)
    world.rebase(longest.node, lead=True)
    for n in NAMES:
        world.rebase(n)
    assert world.may_lead() == [longest.node]
    check(world)
    seen = max(kept.highest_term for kept in world.nodes.values())
    assert world.lead(longest.node, (longest.node,)) > seen
