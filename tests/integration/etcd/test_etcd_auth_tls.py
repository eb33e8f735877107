"""User, password and certificates: what is refused is said, and a token that died is replaced unseen."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import grpc.aio
import pytest
import trustme

from cluster.core.errors import Unreachable
from cluster.etcd import AuthRefused, Changes, EtcdClient, Snapshot, TlsFiles, put
from cluster.rpc.etcd import auth_pb2, rpc_pb2, rpc_pb2_grpc
from node.local.servers import LocalEtcd, ServerTls, start_etcd

from etcd_tools import until  # isort: skip

TOKEN_TTL_S = 1


# -- user and password ------------------------------------------------------------------------------------


async def enable_auth(etcd: LocalEtcd) -> None:
    """root may do all; baton may read and write under /baton/."""
    async with grpc.aio.insecure_channel(etcd.endpoints[0].removeprefix("http://")) as channel:
        auth = rpc_pb2_grpc.AuthStub(channel)
        for user in ("root", "baton"):
            await auth.UserAdd(rpc_pb2.AuthUserAddRequest(name=user, password=f"{user}-secret"))
            await auth.RoleAdd(rpc_pb2.AuthRoleAddRequest(name=user))
            await auth.UserGrantRole(rpc_pb2.AuthUserGrantRoleRequest(user=user, role=user))
        allowed = auth_pb2.Permission(permType=2, key=b"/baton/", range_end=b"/baton0")
        await auth.RoleGrantPermission(rpc_pb2.AuthRoleGrantPermissionRequest(name="baton", perm=allowed))
        await auth.AuthEnable(rpc_pb2.AuthEnableRequest())


@pytest.fixture
async def guarded(tmp_path) -> Iterator[LocalEtcd]:
    args = [f"--auth-token-ttl={TOKEN_TTL_S}", "--bcrypt-cost=4"]
    etcd = await asyncio.to_thread(start_etcd, tmp_path / "etcd", 1, extra_args=args)
    await enable_auth(etcd)
    yield etcd
    etcd.stop(grace_s=0)


def baton(etcd: LocalEtcd, **settings) -> EtcdClient:
    return EtcdClient(etcd.endpoints, **({"user": "baton", "password": "baton-secret"} | settings))


async def test_a_user_may_do_what_its_role_allows_and_is_told_what_not(guarded):
    async with baton(guarded) as client:
        assert (await client.txn([], [put("/baton/k", b"v")])).succeeded
        assert (await client.range("/baton/", prefix=True)).kvs[0].value == b"v"
        lease = await client.lease_grant(1)
        assert await client.lease_keep_alive(lease.id) >= 1
        assert len(await client.members()) == 1
        assert (await client.status())[0].reachable
        with pytest.raises(AuthRefused, match=r"permission denied; grant this user's role"):
            await client.put("/other", b"v")


async def test_a_wrong_password_is_said_at_once(guarded):
    client = baton(guarded, password="guess")
    with pytest.raises(AuthRefused, match=r"invalid user ID or password; check etcd user and password") as e:
        await client.connect()
    assert "guess" not in str(e.value)
    with pytest.raises(AuthRefused):
        await client.put("/baton/k", b"v")
    await client.close()


async def test_no_user_where_one_is_needed_is_said(guarded):
    async with EtcdClient(guarded.endpoints) as client:
        with pytest.raises(AuthRefused, match="set etcd user and password"):
            await client.put("/baton/k", b"v")
        with pytest.raises(AuthRefused):
            async for _ in client.watch("/baton/"):
                pass


async def test_a_user_where_none_is_needed_goes_on_without(client, etcd, prefix):
    async with baton(etcd) as other:
        assert await other.put(prefix + "k", b"v")


async def test_a_token_that_expired_is_replaced_unseen(guarded):
    async with baton(guarded) as client:
        await client.put("/baton/k", b"1")
        first = client._metadata
        # A token's life cannot be looked at without prolonging it, hence a sleep: its TTL, and etcd's own second.
        await asyncio.sleep(TOKEN_TTL_S + 1.5)
        await asyncio.gather(*(client.put(f"/baton/{n}", b"2", timeout_s=2) for n in range(20)))
        assert client._metadata != first
        assert {kv.version for kv in (await client.range("/baton/", prefix=True)).kvs} == {1}
        await asyncio.sleep(TOKEN_TTL_S + 1.5)
        lease = await client.lease_grant(5, timeout_s=2)
        assert await client.lease_keep_alive(lease.id) == 5


async def test_tokens_lost_in_a_restart_are_replaced_unseen_and_a_watch_goes_on(guarded):
    async with baton(guarded) as client:
        watch = client.watch("/baton/", rng=random.Random(1))
        assert isinstance(await anext(watch), Snapshot)
        await asyncio.to_thread(guarded.restart, 0)
        revision = await client.put("/baton/k", b"v", timeout_s=5)
        async with asyncio.timeout(5):
            while (await anext(watch)).revision < revision:
                pass
            again = await client.put("/baton/k", b"w", timeout_s=2)
            change = await anext(watch)
        assert isinstance(change, Changes) and change.revision == again
        await watch.aclose()


async def test_many_callers_share_one_authentication(guarded):
    async with baton(guarded) as client:
        fetched = 0
        fetch = client._fetch_token

        async def counted(ep) -> None:
            nonlocal fetched
            fetched += 1
            await fetch(ep)

        client._fetch_token = counted  # type: ignore[method-assign]
        client.forget_token()
        await asyncio.gather(*(client.range("/baton/", prefix=True, timeout_s=2) for _ in range(20)))
        assert fetched == 1


async def test_a_watch_whose_permission_was_taken_away_says_so(guarded):
    async with baton(guarded) as client, EtcdClient(guarded.endpoints, user="root", password="root-secret") as root:
        watch = client.watch("/baton/", rng=random.Random(1))
        await anext(watch)
        ep, metadata = await root.ready_endpoint()
        await ep.auth.RoleRevokePermission(
            rpc_pb2.AuthRoleRevokePermissionRequest(role="baton", key=b"/baton/", range_end=b"/baton0"),
            metadata=metadata,
            timeout=2,
        )
        watch.resync()
        with pytest.raises(AuthRefused, match="permission denied"):
            await asyncio.wait_for(anext(watch), 5)
        with pytest.raises(StopAsyncIteration):
            await anext(watch)


# -- certificates -----------------------------------------------------------------------------------------


class Pki:
    def __init__(self, dir: Path) -> None:
        ca = trustme.CA()
        self.ca = dir / "ca.pem"
        ca.cert_pem.write_to_path(self.ca)
        self.other_ca = dir / "other-ca.pem"
        trustme.CA().cert_pem.write_to_path(self.other_ca)
        for name, identity in (("server", "127.0.0.1"), ("client", "baton@example.org"), ("named", "etcd.example")):
            issued = ca.issue_cert(identity)
            issued.private_key_pem.write_to_path(dir / f"{name}.key")
            issued.cert_chain_pems[0].write_to_path(dir / f"{name}.pem")
        self.server = ServerTls(str(self.ca), str(dir / "server.pem"), str(dir / "server.key"))
        self.cert, self.key = dir / "client.pem", dir / "client.key"


@pytest.fixture(scope="module")
def pki(tmp_path_factory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def tls_etcd(tmp_path_factory, pki) -> Iterator[LocalEtcd]:
    etcd = start_etcd(tmp_path_factory.mktemp("tls"), members=1, tls=pki.server)
    yield etcd
    etcd.stop()


async def test_client_certificates_are_shown_and_the_servers_is_checked(tls_etcd, pki):
    assert tls_etcd.endpoints[0].startswith("https://")
    async with EtcdClient(tls_etcd.endpoints, tls=TlsFiles(pki.ca, pki.cert, pki.key)) as client:
        assert (await client.txn([], [put("k", b"v")])).succeeded
        assert (await client.range("k")).kvs[0].value == b"v"


async def test_a_server_of_another_authority_is_not_talked_to(tls_etcd, pki):
    client = EtcdClient(tls_etcd.endpoints, tls=TlsFiles(pki.other_ca, pki.cert, pki.key))
    with pytest.raises(Unreachable, match=r"(?i)certificate|handshake|ssl"):
        await client.connect(timeout_s=1)
    await client.close()


async def test_a_server_of_another_name_is_not_talked_to_and_a_name_can_be_given(tls_etcd, pki):
    files = TlsFiles(pki.ca, pki.cert, pki.key, server_name="etcd.example")
    client = EtcdClient(tls_etcd.endpoints, tls=files)
    with pytest.raises(Unreachable, match=r"(?i)name|verif|peer|handshake"):
        await client.connect(timeout_s=1)
    await client.close()


async def test_a_client_without_a_certificate_is_turned_away(tls_etcd, pki):
    client = EtcdClient(tls_etcd.endpoints, tls=TlsFiles(pki.ca))
    with pytest.raises(Unreachable):
        await client.connect(timeout_s=1)
    await client.close()


async def test_plain_text_to_a_tls_server_is_unreachable_not_a_hang(tls_etcd):
    client = EtcdClient([tls_etcd.endpoints[0].removeprefix("https://")])
    with pytest.raises(Unreachable):
        await client.connect(timeout_s=0.5)
    await until(lambda: bool(client._channels.reasons()), 1, "a reason")
    await client.close()
