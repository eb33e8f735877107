"""What every gate must do. Subclass it and give the `bench` fixture: servers and clients to test with."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import Protocol

import pytest

from cluster.core.errors import OutcomeUnknown, StaleTerm
from node.gate import ClaimResult, Gate, GateUnavailable, Verdict
from node.redis_gate import GateClaimer
from tests.support.gates import opened
from tests.support.redis_server import wait_until


class GateBench(Protocol):
    """One gate, many clients, and the faults to put to it."""

    async def client(self, holder: str) -> Gate:
        """Connected; closed by the fixture."""

    async def flush(self) -> None:
        """The state is gone, the connections stay."""

    async def restart(self, *, empty: bool) -> None: ...

    async def stop(self) -> None:
        """Unreachable until restarted."""

    async def let_claims_expire(self) -> None:
        """Until every claim made so far is forgotten."""


def verdicts(results: list[ClaimResult]) -> list[Verdict]:
    return [r.verdict for r in results]


class GateContract:
    async def test_claims_are_refused_before_anyone_armed(self, bench: GateBench) -> None:
        gate = await bench.client("n1")
        assert verdicts(await gate.claim_many(5, ["a"])) == [Verdict.UNARMED]
        assert not (await gate.state()).armed

    async def test_armed_token_claims_each_id_once(self, bench: GateBench) -> None:
        gate = await bench.client("n1")
        armed = await opened(gate, 5)
        assert (armed.token, armed.previous) == (5, 0)
        first = await gate.claim_many(5, ["a", "b", "a"])
        assert verdicts(first) == [Verdict.OK, Verdict.OK, Verdict.DUPLICATE]
        assert [r.client_order_id for r in first] == ["a", "b", "a"]
        assert [r.ok for r in first] == [True, True, False]
        assert verdicts(await gate.claim_many(5, ["b", "c"])) == [Verdict.DUPLICATE, Verdict.OK]

    async def test_no_ids_no_claims(self, bench: GateBench) -> None:
        assert await (await bench.client("n1")).claim_many(5, []) == []

    async def test_duplicate_tells_which_token_had_it(self, bench: GateBench) -> None:
        old, new = await bench.client("n1"), await bench.client("n2")
        await opened(old, 5)
        await old.claim_many(5, ["a"])
        await opened(new, 9)
        [again] = await new.claim_many(9, ["a"])
        assert (again.verdict, again.detail) == (Verdict.DUPLICATE, "5")

    async def test_higher_token_closes_the_gate_for_the_lower(self, bench: GateBench) -> None:
        old, new = await bench.client("n1"), await bench.client("n2")
        await opened(old, 5)
        assert (await opened(new, 9)).previous == 5
        [refused] = await old.claim_many(5, ["a"])
        assert (refused.verdict, refused.high_water) == (Verdict.STALE_TOKEN, 9)
        assert verdicts(await new.claim_many(9, ["a"])) == [Verdict.OK], "the refused claim must not hold the id"

    async def test_arming_a_lower_token_is_refused(self, bench: GateBench) -> None:
        old, new = await bench.client("n1"), await bench.client("n2")
        await opened(new, 9)
        with pytest.raises(StaleTerm, match="9 is armed for n2"):
            await old.arm(5)
        assert verdicts(await new.claim_many(9, ["a"])) == [Verdict.OK]

    async def test_equal_token_rearms_only_for_its_holder(self, bench: GateBench) -> None:
        mine, other = await bench.client("n1/i1"), await bench.client("n1/i2")
        await mine.arm(5)
        assert (await mine.arm(5)).previous == 5
        with pytest.raises(StaleTerm, match="armed for n1/i1"):
            await other.arm(5)

    async def test_token_above_the_high_water_means_the_gate_lost_state(self, bench: GateBench) -> None:
        gate = await bench.client("n1")
        await opened(gate, 5)
        assert verdicts(await gate.claim_many(7, ["a"])) == [Verdict.UNARMED]

    async def test_flushed_gate_is_closed_until_rearmed(self, bench: GateBench) -> None:
        gate = await bench.client("n1")
        await opened(gate, 5)
        await bench.flush()
        assert verdicts(await gate.claim_many(5, ["a"])) == [Verdict.UNARMED]
        assert (await opened(gate, 5)).previous == 0
        assert verdicts(await gate.claim_many(5, ["a"])) == [Verdict.OK]

    @pytest.mark.parametrize("empty", [True, False])
    async def test_restarted_gate_is_closed_until_rearmed(self, bench: GateBench, empty: bool) -> None:
        gate = await bench.client("n1")
        await opened(gate, 5)
        await gate.claim_many(5, ["kept"])
        await bench.restart(empty=empty)
        assert verdicts(await gate.claim_many(5, ["a"])) == [Verdict.UNARMED]
        assert not (await gate.state()).armed
        await opened(gate, 5)
        expected = Verdict.OK if empty else Verdict.DUPLICATE
        assert verdicts(await gate.claim_many(5, ["a", "kept"])) == [Verdict.OK, expected]

    async def test_armed_gate_grants_nothing_before_it_knows_the_latch(self, bench: GateBench) -> None:
        gate = await bench.client("n1")
        await gate.arm(5)
        assert verdicts(await gate.claim_many(5, ["a"])) == [Verdict.UNARMED]
        await gate.note_latch(5, None)
        assert verdicts(await gate.claim_many(5, ["a"])) == [Verdict.OK]

    async def test_old_arming_that_comes_late_to_a_gate_that_forgot_opens_nothing(self, bench: GateBench) -> None:
        old, new = await bench.client("n1"), await bench.client("n2")
        await opened(old, 5)
        await opened(new, 9)
        await bench.flush()
        await old.arm(5)  # which it had sent long ago; that 9 was here is forgotten
        assert verdicts(await old.claim_many(5, ["a"])) == [Verdict.UNARMED]
        assert (await opened(new, 9)).previous == 5
        assert verdicts(await old.claim_many(5, ["a"])) == [Verdict.STALE_TOKEN]
        assert verdicts(await new.claim_many(9, ["b"])) == [Verdict.OK]

    async def test_deposed_token_stays_stale_over_a_restart_that_kept_state(self, bench: GateBench) -> None:
        old, new = await bench.client("n1"), await bench.client("n2")
        await opened(old, 5)
        await opened(new, 9)
        await bench.restart(empty=False)
        assert verdicts(await old.claim_many(5, ["a"])) == [Verdict.STALE_TOKEN]
        with pytest.raises(StaleTerm):
            await opened(old, 5)

    async def test_halt_refuses_all_until_unhalted(self, bench: GateBench) -> None:
        gate = await bench.client("n1")
        await opened(gate, 5)
        await gate.halt("operator: fat finger")
        [refused] = await gate.claim_many(5, ["a"])
        assert (refused.verdict, refused.detail) == (Verdict.HALTED, "operator: fat finger")
        assert (await gate.state()).halted == "operator: fat finger"
        await gate.unhalt()
        assert (await gate.state()).halted is None
        assert verdicts(await gate.claim_many(5, ["a"])) == [Verdict.OK], "a halted claim must not hold the id"

    async def test_halt_outlives_a_new_leader_and_precedes_the_first(self, bench: GateBench) -> None:
        old, new = await bench.client("n1"), await bench.client("n2")
        await old.halt("before anyone armed")
        await opened(old, 5)
        await opened(new, 9)
        assert verdicts(await new.claim_many(9, ["a"])) == [Verdict.HALTED]

    async def test_gate_knows_the_latch_from_when_it_was_noted_for_as_long_as_it_lives(self, bench: GateBench) -> None:
        old, new = await bench.client("n1"), await bench.client("n2")
        assert not (await old.arm(5)).latch_known
        assert not (await new.arm(9)).latch_known, "the leader before may have died before it noted anything"
        await new.note_latch(9, None)
        assert (await new.arm(9)).latch_known and (await new.arm(11)).latch_known

    @pytest.mark.parametrize("lose", ["flush", "empty restart", "restart that kept the state"])
    async def test_gate_that_may_have_lost_the_latch_says_so_when_it_is_armed(
        self, bench: GateBench, lose: str
    ) -> None:
        """What a restart brings back may be older than the press."""
        gate = await bench.client("n1")
        await gate.arm(5)
        await gate.note_latch(5, None)
        await (bench.flush() if lose == "flush" else bench.restart(empty=lose.startswith("empty")))
        with pytest.raises(GateUnavailable):
            await gate.note_latch(5, None)  # it is for the state before
        assert not (await gate.arm(5)).latch_known
        await gate.note_latch(5, "from etcd")
        assert verdicts(await gate.claim_many(5, ["a"])) == [Verdict.HALTED]
        assert (await gate.state()).halted == "from etcd"

    async def test_noting_or_arming_never_clears_a_latch(self, bench: GateBench) -> None:
        gate = await bench.client("n1")
        await gate.halt("press")
        await gate.arm(5)
        await gate.note_latch(5, None)
        assert (await gate.state()).halted == "press"

    async def test_latch_of_a_stale_token_is_not_noted(self, bench: GateBench) -> None:
        old, new = await bench.client("n1"), await bench.client("n2")
        await old.arm(5)
        await new.arm(9)
        with pytest.raises(StaleTerm, match="9 is armed for n2"):
            await old.note_latch(5, "late")
        assert (await new.state()).halted is None and not (await new.arm(9)).latch_known

    async def test_claimed_id_is_free_again_after_its_ttl(self, bench: GateBench) -> None:
        gate = await bench.client("n1")
        await opened(gate, 5)
        await gate.claim_many(5, ["a"])
        await bench.let_claims_expire()
        assert verdicts(await gate.claim_many(5, ["a"])) == [Verdict.OK]

    async def test_fence_seq_orders_all_decisions_of_all_clients(self, bench: GateBench) -> None:
        one, two = await bench.client("n1"), await bench.client("n2")
        seqs = [(await one.arm(5)).fence_seq, await one.note_latch(5, None)]
        seqs += [r.fence_seq for r in await one.claim_many(5, ["a", "b", "a"])]
        seqs += [await two.halt("x"), await two.unhalt(), (await two.arm(6)).fence_seq]
        seqs += [r.fence_seq for r in await one.claim_many(5, ["c"])]
        assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))
        assert (await one.state()).fence_seq == seqs[-1]

    async def test_gone_gate_gives_no_permission_and_recovers(self, bench: GateBench) -> None:
        gate = await bench.client("n1")
        await opened(gate, 5)
        await bench.stop()
        for call in (gate.claim_many(5, ["a"]), gate.arm(6), gate.halt("x"), gate.state()):
            with pytest.raises(GateUnavailable):
                await call
        assert issubclass(GateUnavailable, OutcomeUnknown), "whether a lost claim was noted is not known"
        await bench.restart(empty=True)
        await opened(gate, 5)
        assert verdicts(await gate.claim_many(5, ["a"])) == [Verdict.OK]

    async def test_no_claim_of_the_old_token_is_granted_after_the_new_one_armed(self, bench: GateBench) -> None:
        """Two leaders claim as fast as they can while the second arms; judged by the gate's own order."""
        old, new = await bench.client("n1"), await bench.client("n2")
        await opened(old, 5)
        armed = asyncio.Event()
        after: list[ClaimResult] = []
        granted: list[ClaimResult] = []

        async def claim_as_old(worker: int) -> None:
            for i in itertools.count():
                if len(after) >= 100:
                    break
                was_armed = armed.is_set()
                results = await old.claim_many(5, [f"o{worker}z{i}"])
                granted.extend(r for r in results if r.ok)
                if was_armed:
                    after.extend(results)

        async def take_over() -> int:
            await wait_until(lambda: len(granted) >= 20)
            seq = (await opened(new, 9)).fence_seq
            armed.set()
            await new.claim_many(9, [f"n{i}" for i in range(20)])
            return seq

        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            for worker in range(4):
                tasks.create_task(claim_as_old(worker))
            taking_over = tasks.create_task(take_over())
        assert granted and all(r.fence_seq < taking_over.result() for r in granted)
        assert after and {r.verdict for r in after} == {Verdict.STALE_TOKEN}

    @pytest.mark.parametrize("seed", range(5))
    async def test_random_histories_keep_the_promise(self, bench: GateBench, seed: int) -> None:
        """Any mix of arms, latches, claims, halts and losses: a claim is ok exactly when the rules say so."""
        rng = random.Random(seed)
        clients = [await bench.client(f"n{i}") for i in range(3)]
        high, holder, armed, knows, halted, taken = 0, -1, False, False, False, set[str]()
        arm_refusals = oks = 0
        for step in range(120):
            i = rng.randrange(3)
            token = max(1, high + rng.choice([-2, -1, 0, 0, 0, 1]))
            what = rng.choices(
                ["claim", "arm", "latch", "halt", "unhalt", "flush", "restart"], [60, 15, 15, 3, 6, 2, 1]
            )
            match what[0]:
                case "claim":
                    ids = [f"i{rng.randrange(300)}" for _ in range(rng.randrange(1, 6))]
                    for result, coid in zip(await clients[i].claim_many(token, ids), ids, strict=True):
                        may = armed and knows and token == high and not halted
                        assert result.ok == (may and coid not in taken), (step, result)
                        assert (result.verdict is Verdict.STALE_TOKEN) == (token < high)
                        if may:
                            taken.add(coid)
                        oks += result.ok
                case "arm":
                    if token < high or (token == high and i != holder):
                        arm_refusals += 1
                        with pytest.raises(StaleTerm):
                            await clients[i].arm(token)
                    else:
                        told = await clients[i].arm(token)
                        assert (told.previous, told.latch_known) == (high, knows)
                        high, holder, armed = token, i, True
                case "latch":
                    if armed and token == high:
                        await clients[i].note_latch(token, None)
                        knows = True
                    else:
                        with pytest.raises(StaleTerm if token < high else GateUnavailable):
                            await clients[i].note_latch(token, None)
                case "halt":
                    await clients[i].halt("x")
                    halted = True
                case "unhalt":
                    await clients[i].unhalt()
                    halted = False
                case "flush":
                    await bench.flush()
                    high, holder, armed, knows, halted = 0, -1, False, False, False
                    taken.clear()
                case "restart":
                    await bench.restart(empty=False)
                    armed = knows = False
        assert oks and arm_refusals, "the history never came to what it is for"

    async def test_claimer_gathers_claims_into_batches(self, bench: GateBench) -> None:
        gate = await bench.client("n1")
        await opened(gate, 5)
        claimer = GateClaimer(gate, 5, batch_max=50)
        serving = asyncio.create_task(claimer.run())
        async with asyncio.timeout(10):
            results = await asyncio.gather(*[claimer.claim(f"c{i % 150}") for i in range(200)])
        assert verdicts(results).count(Verdict.OK) == 150
        assert verdicts(results).count(Verdict.DUPLICATE) == 50
        serving.cancel()
        await asyncio.wait([serving])

    async def test_claimer_tells_every_waiter_that_the_gate_is_gone(self, bench: GateBench) -> None:
        gate = await bench.client("n1")
        await opened(gate, 5)
        await bench.stop()
        claimer = GateClaimer(gate, 5)
        serving = asyncio.create_task(claimer.run())
        async with asyncio.timeout(10):
            results = await asyncio.gather(*[claimer.claim(f"c{i}") for i in range(10)], return_exceptions=True)
        assert [type(r) for r in results] == [GateUnavailable] * 10
        assert not serving.done(), "it must serve again when the gate is back"
        serving.cancel()
        await asyncio.wait([serving])
