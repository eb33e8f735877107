"""When etcd is silent, in part or whole; when it is not the one it was; when somebody wrote nonsense into it."""

from __future__ import annotations

import json
import shutil
import ssl
from pathlib import Path

import pytest
import trustme

from cluster.clock import boottime_ns
from cluster.keeper import HISTORY_KEPT
from node.local.servers import LocalEtcd, ServerTls, start_etcd
from tests.integration.keeper.rig import Cluster, Etcd, Node, until


def renewed(cluster: Cluster, times: int = 5) -> None:
    """The leader has renewed so often from now on."""
    before = until(lambda: cluster.value(cluster.keys.leader).get("renewal"), "the leader renews")
    until(lambda: cluster.value(cluster.keys.leader).get("renewal", 0) >= before + times, "the leader renews")


def stopped_acting(node: Node, token: int) -> None:
    """Its permit ended by itself: nobody told it anything."""
    until(lambda: node.log("role_changed", role="fenced", term=token), f"{node.name} is fenced")
    until(lambda: node.seen("StopTrading", term=token), "its worker is told")
    assert node.log("role_changed", role="fenced", term=token)[0]["reason"] == "no renewal was confirmed in time"
    last = node.acts(token)[-1]
    # A little before the end, so that the worker can be told while it may still act.
    assert last.after < last.act_until <= boottime_ns() + 10**9
    assert node.seen("StopTrading", term=token)[0]["at"] > last.before


@pytest.mark.parametrize("how", ["paused", "killed"])
def test_without_etcd_the_permit_ends_by_itself_and_comes_back_with_it(cluster_of, own_etcd, how):
    cluster = cluster_of(2, ttl_s=1.0, etcd=Etcd(own_etcd)).start()
    old = cluster.wait_whole()
    token = cluster.token()
    if how == "paused":
        own_etcd.pause(0)
    else:
        own_etcd.kill(0)
    stopped_acting(old, token)
    assert all(a.token == token for n in cluster.nodes.values() for a in n.acts())
    if how == "paused":
        own_etcd.resume(0)
    else:
        own_etcd.restart(0)
    cluster.wait_leader(after=token)
    cluster.wait_whole()


def test_etcd_may_lose_a_member_but_not_its_majority(cluster_of, tmp_path):
    server = start_etcd(tmp_path / "etcd3", members=3)
    try:
        cluster = cluster_of(3, ttl_s=2.0, etcd=Etcd(server)).start()
        cluster.wait_whole()
        token = cluster.token()
        server.kill(2)  # an election among the other two, if it was the leader there
        renewed(cluster, 5)
        leader = cluster.wait_leader()
        token = cluster.token()
        server.kill(1)
        stopped_acting(leader, token)
        server.restart(1, wait=False)
        server.restart(2)
        cluster.wait_leader(after=token)
        cluster.wait_whole()
    finally:
        cluster.stop()
        server.stop(grace_s=0)


# -- another etcd, or an older one ------------------------------------------------------------------------------


def wipe(server: LocalEtcd, *, token: str = "") -> None:
    """Start it anew, without its data; as a cluster with another id, if `token` is given."""
    member = server.members[0]
    member.proc.kill()
    shutil.rmtree(Path(member.dir) / "data")
    if token:
        member.proc.argv = [a for a in member.proc.argv if "--initial-cluster-token" not in a]
        member.proc.argv.append(f"--initial-cluster-token={token}")
    server.restart(0)


@pytest.mark.parametrize(
    ("token", "told", "remedy"),
    [
        ("", "etcd went back from revision", "stop all nodes and run `baton fence rebase` on each"),
        ("another", ", expected cluster ", "correct etcd.endpoints"),
    ],
    ids=["older", "other"],
)
def test_nodes_stop_for_good_when_etcd_is_not_the_one_it_was(cluster_of, own_etcd, token, told, remedy):
    cluster = cluster_of(2, ttl_s=1.0, etcd=Etcd(own_etcd))
    for _ in range(100):  # so that tokens are higher than what the new etcd gets to while we look
        cluster.etcd.put("/elsewhere", "")
    cluster.start()
    cluster.failures_allowed |= {"node_stopped", "stderr"}
    cluster.wait_whole()
    assert cluster.token() > 100
    wipe(own_etcd, token=token)
    for node in cluster.nodes.values():
        assert node.wait_exit() == 3
        (said,) = node.stderr()
        assert said.startswith(f"baton: {node.name} stopped: etcd ")
        assert told in said
        assert remedy in said
        assert node.log("node_stopped")
    assert not cluster.token()
    # Nor do they come back: the journal remembers.
    for node in cluster.nodes.values():
        node.start()
    for node in cluster.nodes.values():
        assert node.wait_exit() == 3
        assert ("lower than term" if not token else "cluster id") in node.stderr()[-1]
    assert not cluster.token()


# -- nonsense -----------------------------------------------------------------------------------------------------

NONSENSE = [
    b"",
    b"\xff\xfe",
    b"[]",
    b"null",
    b"[" * 20_000,
    b'{"node": "n1"}',
    b'{"members": []}',
    b'{"node":"n1","incarnation":"i","home":"h","attempt":1,"renewal":1,"ttl_ms":Infinity,"token":1e999,"at":{}}',
    b'{"x": "' + b"x" * 200_000 + b'"}',
]


def test_nonsense_under_a_running_leader_is_reported_and_harms_nobody(cluster_of):
    cluster = cluster_of(2, ttl_s=1.0).start()
    leader = cluster.wait_whole()
    token = cluster.token()
    keys = cluster.keys
    names = [keys.leader, keys.resigned, keys.member("n1"), keys.member("n9"), keys.history_of(7), keys.answer("a")]
    names += [keys.prefix + "control/other"]
    for value in NONSENSE:
        for name in names:
            cluster.etcd.put(name, value)
        renewed(cluster, 1)
    for node in cluster.nodes.values():
        until(
            lambda node=node: {e["key"] for e in node.log("key_unreadable")} >= set(names),
            f"{node.name} reports all of them",
        )
    renewed(cluster, 3)
    assert cluster.token() == token
    # And a takeover goes through, with nonsense all around.
    leader.order("signal", "SIGKILL")
    cluster.wait_leader(after=token)


def seeded(cluster: Cluster, **values: str | bytes) -> Node:
    """A node that is in sync, in a cluster where this was written before it started."""
    cluster.etcd.put(cluster.keys.insync, json.dumps({"members": {"n1": "j1"}}))
    for name, value in values.items():
        cluster.etcd.put(getattr(cluster.keys, name), value)
    return cluster["n1"].start('hello:{"journal_id": "j1"}')


def tenure(ttl_s: float) -> str:
    return json.dumps({"node": "n8", "incarnation": "i", "home": "h", "ttl_ms": int(ttl_s * 1000)})


@pytest.mark.parametrize(
    ("values", "waits_s"),
    [
        ({"leader": b"nonsense"}, 1.0),  # evicted like anybody who does not renew, after our own ttl
        ({"tenure": b"nonsense"}, 1.0),  # a stranger's, not resigned
        ({"tenure": tenure(1.7), "resigned": b"nonsense"}, 1.7),  # proves nothing
        ({"tenure": tenure(1.7), "resigned": b'{"token": "1", "reason": "", "actor": "", "at": 0}'}, 1.7),
    ],
    ids=["leader", "tenure", "resigned", "resigned-of-another"],
)
def test_what_cannot_be_read_is_waited_for_as_if_it_were_alive(cluster_of, values, waits_s):
    cluster = cluster_of(1, ttl_s=1.0)
    started = boottime_ns()
    node = seeded(cluster, **values)
    cluster.wait_leader()
    assert node.acts()[0].after - started >= waits_s * 1e9
    for name, value in values.items():
        if value == b"nonsense":
            assert node.log("key_unreadable", key=getattr(cluster.keys, name))


def test_nobody_leads_while_the_insync_set_cannot_be_read(cluster_of):
    cluster = cluster_of(1, ttl_s=0.5)
    node = seeded(cluster, insync=b'{"members": []}')
    until(lambda: node.log("key_unreadable", key=cluster.keys.insync), "it is reported")
    until(lambda: cluster.value(cluster.keys.member("n1")).get("ready"), "the node is up")
    # For as long as would do in every other case.
    waited_from = boottime_ns()
    until(lambda: boottime_ns() - waited_from > 1.5e9, "three ttl pass")
    assert not cluster.key(cluster.keys.tenure)
    cluster.etcd.put(cluster.keys.insync, json.dumps({"members": {"n1": "j1"}}))
    cluster.wait_leader()


@pytest.mark.parametrize("how", ["deleted", "nobody"])
def test_nobody_leads_when_it_is_not_known_who_held_everything(cluster_of, how):
    """`insync` deleted by hand, or naming nobody, as after a rebase without --lead; in a cluster that has led."""
    cluster = cluster_of(2, ttl_s=1.0).start()
    leader = cluster.wait_whole()
    members = cluster.key(cluster.keys.insync).value
    token = cluster.token()
    leader.order("behave", "alone")
    if how == "deleted":
        cluster.etcd.delete(cluster.keys.insync)
    else:
        cluster.etcd.put(cluster.keys.insync, '{"members":{}}')
    leader.order("signal", "SIGKILL")
    until(lambda: cluster.resigned.get("token") == token, "it has resigned")
    waited_from = boottime_ns()
    until(lambda: boottime_ns() - waited_from > 2e9, "two ttl pass")
    assert not cluster.token()
    for node in cluster.nodes.values():
        (said,) = node.log("insync_missing", key=cluster.keys.insync)  # once, and what to do
        assert "baton fence rebase" in said["remedy"]
    cluster.etcd.put(cluster.keys.insync, members)
    cluster.wait_leader(after=token)


def test_a_leader_forgets_the_oldest_leaderships(cluster_of):
    cluster = cluster_of(1)
    old = [cluster.keys.history_of(n) for n in range(1, HISTORY_KEPT + 3)]
    for key in old:  # each raises the revision, so the token to come is higher
        cluster.etcd.put(key, "{}")
    cluster.start()
    cluster.wait_whole()
    kept = cluster.keys.history_of(cluster.token())
    until(lambda: cluster.key(kept), "the leadership is on record")

    def recorded() -> list[str]:
        return sorted(k for k in cluster.etcd.keys(cluster.keys.prefix) if k.startswith(cluster.keys.history))

    until(lambda: recorded() == [*old[3:], kept], "what is too old is gone")


def test_a_leader_key_forged_by_hand_is_evicted_and_never_used(cluster_of):
    """Deleted and written again: another create_revision, so another term, whatever the value says."""
    cluster = cluster_of(2, ttl_s=1.0).start()
    old = cluster.wait_whole()
    token = cluster.token()
    value = cluster.value(cluster.keys.leader) | {"incarnation": "x", "home": "y"}
    for node in cluster.nodes.values():
        node.keeper.pause()
    cluster.etcd.delete(cluster.keys.leader)
    forged = cluster.etcd.put(cluster.keys.leader, json.dumps(value))
    for node in cluster.nodes.values():
        node.keeper.resume()
    cluster.wait_leader(after=forged)
    until(lambda: old.seen("StopTrading", term=token), "who held the key is stopped")
    assert not any(a.token == forged for n in cluster.nodes.values() for a in n.acts())


# -- TLS ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def certificates(tmp_path: Path) -> ServerTls:
    ca = trustme.CA()
    cert = ca.issue_cert("127.0.0.1")
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    cert.private_key_pem.write_to_path(tmp_path / "key.pem")
    (tmp_path / "cert.pem").write_bytes(b"".join(c.bytes() for c in cert.cert_chain_pems))
    return ServerTls(str(tmp_path / "ca.pem"), str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))


def test_a_keeper_leads_over_an_etcd_that_wants_certificates(cluster_of, tmp_path, certificates):
    server = start_etcd(tmp_path / "etcd-tls", members=1, tls=certificates)
    try:
        context = ssl.create_default_context(cafile=certificates.ca)
        context.load_cert_chain(certificates.cert, certificates.key)
        cluster = cluster_of(1, etcd=Etcd(server, context))
        arguments = cluster["n1"].spec["etcd"]
        files = {"ca": certificates.ca, "cert": certificates.cert, "key": certificates.key}
        cluster["n1"].start(etcd=arguments | {"tls": files})
        cluster.wait_leader()
        cluster.stop()
        # A certificate that is not there is said, and not as a traceback.
        cluster.failures_allowed.add("stderr")
        cluster["n1"].start(etcd=arguments | {"tls": files | {"ca": "/nonexistent/ca.pem"}})
        assert cluster["n1"].wait_exit() == 1
        (said,) = cluster["n1"].stderr()
        assert said == "baton: etcd TLS: cannot read ca /nonexistent/ca.pem: No such file or directory"
    finally:
        server.stop(grace_s=0)


# -- the kill latch ---------------------------------------------------------------------------------------------


def test_workers_are_told_of_the_latch_before_they_may_lead_and_at_every_change(cluster_of):
    cluster = cluster_of(2).start()
    leader = cluster.wait_whole()
    told = [e["what"] for e in leader.seen() if e["what"] in ("LatchSeen", "Lead")]
    assert told[0] == "LatchSeen" and "Lead" in told
    cluster.etcd.put(cluster.keys.halt, json.dumps({"reason": "fat finger", "actor": "ann", "at": 1}))
    for node in cluster.nodes.values():
        until(lambda n=node: n.seen("LatchSeen", halted="fat finger"), f"{node.name} hears of the press")
    leader.order("say", {"t": "AskLatch", "request": 4, "term": 1})
    until(lambda: leader.seen("LatchAnswer", request=4), "the answer to a term that does not lead")
    assert "does not lead" in leader.seen("LatchAnswer", request=4)[0]["unreadable"]
    leader.order("say", {"t": "AskLatch", "request": 5, "term": leader.seen("Lead")[-1]["term"]})
    until(lambda: leader.seen("LatchAnswer", request=5, halted="fat finger", unreadable=""), "the answer")
    heard = len(leader.seen("LatchSeen"))
    leader.order("exit", 1)
    until(lambda: leader.seen("LatchSeen")[heard:], "its next worker is told what stands")
    assert leader.seen("LatchSeen")[-1]["halted"] == "fat finger"
    cluster.etcd.delete(cluster.keys.halt)
    for node in cluster.nodes.values():
        until(lambda n=node: n.seen("LatchSeen")[-1]["halted"] is None, f"{node.name} hears that it is cleared")


def test_worker_that_asks_for_the_latch_hears_that_etcd_is_silent(cluster_of, own_etcd):
    cluster = cluster_of(1, ttl_s=5.0, etcd=Etcd(own_etcd)).start()
    node = cluster.wait_leader()
    own_etcd.kill(0)
    term = node.seen("Lead")[-1]["term"]
    node.order("say", {"t": "AskLatch", "request": 5, "term": term})
    until(lambda: node.seen("LatchAnswer", request=5), "the answer")
    (answer,) = node.seen("LatchAnswer")
    assert answer["halted"] is None and "etcd" in answer["unreadable"]
    own_etcd.restart(0)
    node.order("say", {"t": "AskLatch", "request": 6, "term": term})
    until(lambda: node.seen("LatchAnswer", request=6, unreadable=""), "the answer")
