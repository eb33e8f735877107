"""Whom a follower refuses, whom a leader refuses, and that a closed term stays closed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import pytest
import trustme

from cluster.core.errors import ConfigError, InvariantViolation, StaleTerm
from cluster.core.ids import JournalId, LogIndex, NodeId, Term
from cluster.core.insync import Member
from cluster.core.log import GENESIS, make_entry
from cluster.core.stream import Entries
from cluster.replication import TlsFiles, WireSettings
from cluster.rpc import replication_pb2 as pb
from cluster.rpc import replication_pb2_grpc as rpc
from cluster.wire import leader_message
from tests.integration.replication.nodes import FAST, KIND, FakeEtcd, Node, wait_until

pytestmark = pytest.mark.asyncio(loop_scope="session")

Make = Callable[..., Awaitable[Node]]


async def test_a_leader_of_a_lower_term_is_refused_and_learns_why(node: Make, etcd: FakeEtcd) -> None:
    a, b = await node("n1"), await node("n2")
    await a.lead(5, etcd, b)
    await b.journal.raise_term(Term(9))
    with pytest.raises(StaleTerm, match="term 9 has been seen"):
        b.follow(a, 5)
    # Even a follower that is told a higher term and finds the old leader at the address takes nothing from it.
    b.follow(a, 9)
    await wait_until(lambda: bool(a.higher_terms))
    assert a.higher_terms[0] == (9, "n2")
    assert b.journal.last.index == 0
    assert a.log is not None and a.log.followers() == []


async def test_after_stop_following_the_old_leader_gets_no_acknowledgement(node: Make, etcd: FakeEtcd) -> None:
    # 1. A leads, B is in sync. 2. B closes the term, to campaign. 3. A appends: it can never be committed,
    # because etcd (held here) has not removed B, and B acknowledges nothing any more.
    a, b = await node("n1"), await node("n2")
    await a.lead(1, etcd, b)
    b.follow(a, 1)
    await a.append(10)
    etcd.hold = True
    assert a.log is not None
    burst = [a.log.append(KIND, b"x", 7) for _ in range(200)]
    await b.stop_following(closing=Term(1))
    late = a.log.append(KIND, b"late", 7)
    held = b.journal.last.index
    assert b.journal.durable_index == held  # at rest
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.6):
            await asyncio.shield(a.log.wait_committed(late.index))
    assert a.log.commit_index <= held < late.index
    assert a.log.commit_index <= burst[-1].index
    with pytest.raises(StaleTerm):
        b.follow(a, 1)


async def test_a_node_that_has_led_follows_no_older_leader(node: Make, etcd: FakeEtcd) -> None:
    a, b = await node("n1"), await node("n2")
    await a.lead(4, etcd)
    await b.lead(5, etcd)
    await b.append()
    b.server.stop_leading("done")
    with pytest.raises(StaleTerm, match="term 5 has been seen"):
        b.follow(a, 4)


async def test_the_promise_to_a_term_survives_a_crash(node: Make, etcd: FakeEtcd, tmp_path: Path) -> None:
    a, b = await node("n1"), await node("n2")
    await a.lead(7, etcd)
    b.follow(a, 7)
    await wait_until(lambda: a.in_sync(b))
    await b.stop()
    again = await node("n2")
    assert again.journal.highest_term == 7


async def test_a_follower_that_is_early_waits_for_the_leader_to_begin(node: Make, etcd: FakeEtcd) -> None:
    a, b = await node("n1"), await node("n2")
    b.follow(a, 3)
    await wait_until(lambda: a.server._early == 1)
    log = await a.lead(3, etcd, b)
    async with asyncio.timeout(0.25):  # well within a back-off after a refusal
        await log.wait_committed(log.first_index)
    assert b.follower.state().refused is None


async def test_a_node_that_does_not_lead_says_so(node: Make, etcd: FakeEtcd) -> None:
    a, b = await node("n1"), await node("n2")
    b.follow(a, 3)
    await wait_until(lambda: b.follower.state().refused is not None)
    assert b.follower.state().refused == "n1 does not lead"
    assert not b.stopped


# -- who is who ---------------------------------------------------------------------------------------------------


async def test_another_clusters_node_is_refused(node: Make, etcd: FakeEtcd) -> None:
    a, b = await node("n1"), await node("n2", cluster="c2")
    await a.lead(1, etcd)
    b.follow(a, 1)
    await wait_until(lambda: b.follower.state().refused is not None)
    assert "'c1'" in str(b.follower.state().refused) and "'c2'" in str(b.follower.state().refused)
    assert b.journal.last.index == 0


async def test_an_unknown_node_is_refused(node: Make, etcd: FakeEtcd) -> None:
    a, x = await node("n1"), await node("stranger")
    await a.lead(1, etcd)
    x.follow(a, 1)
    await wait_until(lambda: x.follower.state().refused is not None)
    assert "'stranger'" in str(x.follower.state().refused)


async def test_a_second_process_with_the_same_node_id_is_refused(node: Make, etcd: FakeEtcd, tmp_path: Path) -> None:
    a, b = await node("n1"), await node("n2")
    await a.lead(1, etcd)
    b.follow(a, 1)
    await wait_until(lambda: a.in_sync(b))
    (tmp_path / "other").mkdir()
    twin = await Node("n2", tmp_path / "other", settings=FAST).start()
    try:
        twin.follow(a, 1)
        await wait_until(lambda: twin.follower.state().refused is not None)
        assert "another process calls itself 'n2'" in str(twin.follower.state().refused)
        await a.append()
        assert a.in_sync(b)
    finally:
        await twin.stop()


async def test_a_journal_that_lost_what_it_acknowledged_is_refused_for_good(node: Make, etcd: FakeEtcd) -> None:
    a, b = await node("n1"), await node("n2")
    await a.lead(1, etcd, b)
    assert a.log is not None
    # As if an old copy of the disk had been put back: the same journal id, less than it had acknowledged.
    a.log.insync.acked(Member(b.name, b.journal.journal_id), LogIndex(1), a.log._clock())
    b.follow(a, 1)
    await wait_until(lambda: bool(b.stopped))
    assert isinstance(b.stopped[0], InvariantViolation)
    assert "acknowledged 1 and now ends at 0" in str(b.stopped[0])


async def test_a_hello_that_makes_no_sense_is_refused(node: Make, etcd: FakeEtcd) -> None:
    a = await node("n1")
    await a.lead(1, etcd)
    good = {"protocol": 1, "cluster": "c1", "node": "n2", "journal_id": "j", "term": 1}
    async with grpc.aio.insecure_channel(a.address) as channel:
        for change, code in (
            ({"protocol": 2}, pb.REFUSAL_PROTOCOL),
            ({}, pb.REFUSAL_PROTOCOL),  # no locator
            ({"locator": [pb.Position(index=0, chain=b"short")]}, pb.REFUSAL_PROTOCOL),
            ({"node": "n1"}, pb.REFUSAL_UNKNOWN_NODE),  # calls itself by the leader's own name
        ):
            call = rpc.ReplicationStub(channel).Follow()  # type: ignore[no-untyped-call]
            await call.write(pb.FollowerMessage(hello=pb.Hello(**{**good, **change})))  # type: ignore[arg-type]
            answer = await call.read()
            assert answer.refused.code == code, change
            assert answer.refused.reason
        call = rpc.ReplicationStub(channel).Follow()  # type: ignore[no-untyped-call]
        await call.write(pb.FollowerMessage(ack=pb.Ack(term=1, durable_index=99)))
        assert await call.read() is grpc.aio.EOF  # an acknowledgement without a Hello counts for nothing
    assert a.log is not None and a.log.followers() == []


async def test_an_acknowledgement_of_more_than_was_sent_ends_the_stream(node: Make, etcd: FakeEtcd) -> None:
    a = await node("n1")
    await a.lead(1, etcd)
    async with grpc.aio.insecure_channel(a.address) as channel:
        for ack in (pb.Ack(term=1, durable_index=50), pb.Ack(term=2, durable_index=0)):
            call = rpc.ReplicationStub(channel).Follow()  # type: ignore[no-untyped-call]
            hello = pb.Hello(
                protocol=1,
                cluster="c1",
                node="n2",
                journal_id="j",
                term=1,
                locator=[pb.Position(index=0, chain=GENESIS)],
            )
            await call.write(pb.FollowerMessage(hello=hello))
            assert (await call.read()).HasField("start")
            await call.write(pb.FollowerMessage(ack=ack))
            async with asyncio.timeout(5):
                while await call.read() is not grpc.aio.EOF:
                    pass
    assert a.log is not None
    assert a.log.insync.durable_of(Member(NodeId("n2"), JournalId("j"))) == 0


# -- a leader that misbehaves -----------------------------------------------------------------------------------


class Forger(rpc.ReplicationServicer):
    """A leader of term 1 that sends what the test wants."""

    def __init__(self, *messages: pb.LeaderMessage) -> None:
        self.messages, self.hellos = messages, 0

    async def Follow(self, _requests: object, context: grpc.aio.ServicerContext) -> None:
        await context.read()
        self.hellos += 1
        start = pb.Start(leader="n1", term=1, fork=pb.Position(index=0, chain=GENESIS))
        await context.write(pb.LeaderMessage(start=start))
        for message in self.messages:
            await context.write(message)
        await asyncio.sleep(30)  # and then silence


async def serve(forger: Forger) -> tuple[grpc.aio.Server, str]:
    server = grpc.aio.server()
    rpc.add_ReplicationServicer_to_server(forger, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, f"127.0.0.1:{port}"


async def test_frames_that_do_not_follow_are_reported_after_a_few_tries(node: Make) -> None:
    b = await node("n2")
    good = make_entry(0, GENESIS, Term(1), KIND, 0, b"")
    forger = Forger(leader_message(Entries([good._replace(body=b"forged")], LogIndex(0))))
    server, address = await serve(forger)
    try:
        b.follower.follow(NodeId("n1"), address, Term(1))
        await wait_until(lambda: bool(b.stopped))
        assert "entry 1" in str(b.stopped[0]) and "chain" in str(b.stopped[0])
        assert forger.hellos == 3
        assert b.journal.last.index == 0
    finally:
        await server.stop(0)


async def test_a_silent_leader_is_dialled_anew(node: Make) -> None:
    b = await node("n2")
    forger = Forger()
    server, address = await serve(forger)
    try:
        b.follower.follow(NodeId("n1"), address, Term(1))
        await wait_until(lambda: forger.hellos >= 2)
        assert not b.stopped
    finally:
        await server.stop(0)


async def test_a_leader_that_is_not_the_one_expected_is_left(node: Make, etcd: FakeEtcd) -> None:
    a, b = await node("n1"), await node("n2")
    await a.lead(1, etcd)
    b.follower.follow(NodeId("n3"), a.address, Term(1))
    await wait_until(lambda: a.server._attached >= 2)  # it comes and goes
    assert b.journal.last.index == 0


# -- TLS ------------------------------------------------------------------------------------------------------------


def tls(directory: Path, ca: trustme.CA, name: str, trusts: trustme.CA | None = None) -> WireSettings:
    where = directory / f"tls-{name}-{id(ca)}"
    where.mkdir()
    cert = ca.issue_cert(name)
    files = TlsFiles(where / "ca.pem", where / "cert.pem", where / "key.pem")
    (trusts or ca).cert_pem.write_to_path(str(files.ca))
    cert.private_key_pem.write_to_path(str(files.key))
    files.cert.write_bytes(b"".join(pem.bytes() for pem in cert.cert_chain_pems))
    return WireSettings(heartbeat_s=0.02, silence_s=0.4, hello_s=1.0, tls=files)


async def test_nodes_that_prove_themselves_replicate(node: Make, etcd: FakeEtcd, tmp_path: Path) -> None:
    ca = trustme.CA()
    a, b = await node("n1", settings=tls(tmp_path, ca, "n1")), await node("n2", settings=tls(tmp_path, ca, "n2"))
    await a.lead(1, etcd, b)
    b.follow(a, 1)
    await a.append(5)
    assert b.journal.durable_index == 6


@pytest.mark.parametrize("who", ["follower", "leader", "plain"])
async def test_a_stranger_to_the_ca_is_not_let_in(node: Make, etcd: FakeEtcd, tmp_path: Path, who: str) -> None:
    ca, other = trustme.CA(), trustme.CA()
    good_a, good_b = tls(tmp_path, ca, "n1"), tls(tmp_path, ca, "n2")
    bad_a = tls(tmp_path, other, "n1", trusts=ca)
    bad_b = FAST if who == "plain" else tls(tmp_path, other, "n2", trusts=ca)
    a = await node("n1", settings=bad_a if who == "leader" else good_a)
    b = await node("n2", settings=good_b if who == "leader" else bad_b)
    await a.lead(1, etcd)
    b.follow(a, 1)
    await wait_until(lambda: b.follower.following.attempts >= 3)
    assert b.journal.last.index == 0
    assert a.server._attached == 0


async def test_a_certificate_of_another_node_is_refused(node: Make, etcd: FakeEtcd, tmp_path: Path) -> None:
    ca = trustme.CA()
    a, b = await node("n1", settings=tls(tmp_path, ca, "n1")), await node("n2", settings=tls(tmp_path, ca, "n3"))
    await a.lead(1, etcd)
    b.follow(a, 1)
    await wait_until(lambda: b.follower.state().refused is not None)
    assert "['n3']" in str(b.follower.state().refused) and "'n2'" in str(b.follower.state().refused)


async def test_a_leader_with_another_nodes_certificate_is_not_talked_to(
    node: Make, etcd: FakeEtcd, tmp_path: Path
) -> None:
    ca = trustme.CA()
    a, b = await node("n1", settings=tls(tmp_path, ca, "n3")), await node("n2", settings=tls(tmp_path, ca, "n2"))
    await a.lead(1, etcd)
    b.follow(a, 1)
    await wait_until(lambda: b.follower.following.attempts >= 3)
    assert a.server._attached == 0


async def test_unusable_tls_files_are_named_at_the_start(tmp_path: Path) -> None:
    files = TlsFiles(tmp_path / "ca.pem", tmp_path / "cert.pem", tmp_path / "key.pem")
    n = Node("n1", tmp_path, settings=WireSettings(tls=files))
    with pytest.raises(ConfigError, match=r"ca\.pem"):
        await n.start()
    n.journal.close()


async def test_an_address_that_is_taken_is_named(node: Make) -> None:
    a, b = await node("n1"), await node("n2")
    with pytest.raises(ConfigError, match=a.address):
        await b.server.start(a.address)
