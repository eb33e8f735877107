"""The gate on Redis: one Lua script decides everything (what it promises: `gate.py`).

A gate that lost its state (restarted empty, flushed) has no high-water; one that was restarted or failed over, with
whatever state, runs under another `run_id` than the one noted when it was armed, because what came with it may be older
than what was lost: both read as *unarmed*, and as not knowing the latch, until the leader arms again.

`GateClaimer` gathers claims, so that a thousand of them cost a few round trips. Keys, all in one slot:
`baton:{<cluster>}:gate` (hash), `...:gate:claim:<client order id>` (expire), `...:gate:record` (stream, if recorded).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qs, urlsplit

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError

from cluster.core.errors import StaleTerm
from node.gate import Armed, ClaimResult, Decision, Gate, GateState, GateUnavailable, GateUnsuitable, Verdict

REDIS_MAJOR_MIN = 6
CONNECT_TIMEOUT_S = 2.0
"""For the checks at connect, which are off the order path."""

_TOKEN_MAX = 2**53 - 1  # Lua numbers are doubles; etcd revisions stay far below


# Reply of claim: {first seq, high, halted, and per id: a verdict's number, or the token (a string) that has it already}
_SCRIPT = """
local state, record = KEYS[1], KEYS[2]
local op, token, text, ttl, cap = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], tonumber(ARGV[5])
local s = redis.call('HMGET', state, 'high', 'holder', 'run', 'halted', 'latch_run')
local high, holder, halted = tonumber(s[1]), s[2] or '', s[4]
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
local armed, latch_known = high ~= nil and s[3] == run, s[5] == run

if op == 'state' then
  return {armed and 1 or 0, high or 0, holder, halted or '', tonumber(redis.call('HGET', state, 'seq') or 0)}
end

local n = math.max(1, #KEYS - 2)
local seq = redis.call('HINCRBY', state, 'seq', n) - n + 1
local function note(i, subject, verdict)
  if cap > 0 then
    redis.call('XADD', record, 'MAXLEN', '~', cap, '*', 'seq', string.format('%.0f', seq + i), 'op', op,
      'token', ARGV[2], 'high', s[1] or '0', 'subject', subject, 'verdict', verdict)
  end
end

if op == 'arm' then
  if high and (token < high or (token == high and text ~= holder)) then
    note(0, text, 'stale_token')
    return {0, seq, high, holder}
  end
  redis.call('HSET', state, 'high', ARGV[2], 'holder', text, 'run', run)
  note(0, text, 'ok')
  return {1, seq, high or 0, holder, latch_known and 1 or 0}
elseif op == 'latch' then
  if not armed or token ~= high then
    local stale = high and token < high
    note(0, text, stale and 'stale_token' or 'gate_unarmed')
    return {stale and 1 or 2, seq, high or 0, holder}
  end
  redis.call('HSET', state, 'latch_run', run)
  if text ~= '' then redis.call('HSET', state, 'halted', text) end
  note(0, text, 'ok')
  return {0, seq, high, holder}
elseif op == 'halt' then
  redis.call('HSET', state, 'halted', text)
  note(0, text, 'ok')
  return {1, seq}
elseif op == 'unhalt' then
  redis.call('HDEL', state, 'halted')
  note(0, '', 'ok')
  return {1, seq}
end

-- Stale before unarmed: a token below any high-water ever seen here is deposed, whatever else is lost.
local code, verdict = 0, 'ok'
if high and token < high then code, verdict = 1, 'stale_token'
elseif not armed or not latch_known or token ~= high then code, verdict = 2, 'gate_unarmed'
elseif halted then code, verdict = 3, 'halted' end
local out = {seq, high or 0, halted or ''}
for i = 3, #KEYS do
  local answer, word = code, verdict
  if code == 0 and not redis.call('SET', KEYS[i], ARGV[2], 'NX', 'PX', ttl) then
    answer, word = redis.call('GET', KEYS[i]) or '0', 'duplicate'
  end
  out[i + 1] = answer
  note(i - 3, ARGV[i + 3], word)
end
return out
"""

_VERDICTS = (Verdict.OK, Verdict.STALE_TOKEN, Verdict.UNARMED, Verdict.HALTED)


class RedisGate:
    """A `Gate` on one Redis (6 or newer, or one that speaks like it). Never retries: the caller knows whether to."""

    def __init__(
        self,
        url: str,
        *,
        cluster: str,
        holder: str,
        timeout_s: float,
        claim_ttl_s: float,
        record_max: int = 0,
    ) -> None:
        """url: redis://, rediss:// (TLS) or unix://, with password. holder: this node and incarnation.
        record_max: how many decisions Redis keeps for audits; 0: none. Raises GateUnsuitable for a url that is none."""
        self._holder = holder
        self._timeout_s = timeout_s
        self._ttl_ms = str(round(claim_ttl_s * 1000))
        self._record_max = record_max
        base = f"baton:{{{cluster}}}:gate"
        self._state_key, self._record_key, self._claim_prefix = base, f"{base}:record", f"{base}:claim:"
        self._sha = ""
        try:
            self._where = _where(url)
            # redis-py 8 would retry ten times and wait 5 s: a gate must say no long before (reference/ux.md 2).
            self._redis: Any = redis.asyncio.Redis.from_url(
                url,
                retry=Retry(NoBackoff(), 0),
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                protocol=2,
                max_connections=8,
                health_check_interval=0,
            )
        except (ValueError, TypeError) as e:
            raise GateUnsuitable(f"gate.url: {e}; write redis://host:port/0, rediss:// for TLS") from e

    async def connect(self) -> list[str]:
        async with _Patience(self._where, CONNECT_TIMEOUT_S):
            info: dict[str, Any] = await self._redis.info()
            warnings = _judge_server(self._where, info)
            if info.get("aof_enabled"):
                warnings += await self._appendfsync_warnings()
            self._sha = await self._redis.script_load(_SCRIPT)
        return warnings

    async def _appendfsync_warnings(self) -> list[str]:
        try:
            fsync = (await self._redis.config_get("appendfsync")).get("appendfsync")
        except ResponseError:  # managed services forbid CONFIG
            return [f"{self._where} does not tell its appendfsync; `always` is what the gate wants"]
        if fsync == "always":
            return []
        return [f"{self._where} has appendfsync {fsync}: a crash forgets the latest claims; set it to always"]

    async def close(self) -> None:
        await self._redis.aclose()

    async def arm(self, token: int) -> Armed:
        ok, seq, high, holder, *latch_known = await self._call("arm", token, self._holder)
        if not ok:
            raise self._stale(token, high, holder)
        return Armed(token, seq, high, latch_known == [1])

    async def note_latch(self, token: int, halted: str | None) -> int:
        code, seq, high, holder = await self._call("latch", token, "" if halted is None else halted or "halted")
        match _VERDICTS[code]:
            case Verdict.STALE_TOKEN:
                raise self._stale(token, high, holder)
            case Verdict.UNARMED:
                raise GateUnavailable("it lost its state before the latch was noted")
        return int(seq)

    def _stale(self, token: int, high: int, holder: bytes) -> StaleTerm:
        whose = holder.decode("utf-8", "replace")
        return StaleTerm(f"token {token} of {self._holder} refused, {high} is armed for {whose}")

    async def claim_many(self, token: int, client_order_ids: Sequence[str]) -> list[ClaimResult]:
        if not client_order_ids:
            return []
        seq, high, halted, *answers = await self._call("claim", token, "", client_order_ids)
        why = halted.decode("utf-8", "replace")
        results = []
        for i, (coid, answer) in enumerate(zip(client_order_ids, answers, strict=True)):
            if isinstance(answer, bytes):
                results.append(ClaimResult(coid, Verdict.DUPLICATE, seq + i, high, answer.decode()))
            else:
                verdict = _VERDICTS[answer]
                results.append(ClaimResult(coid, verdict, seq + i, high, why if verdict is Verdict.HALTED else ""))
        return results

    async def halt(self, reason: str) -> int:
        _, seq = await self._call("halt", 0, reason or "halted")
        return int(seq)

    async def unhalt(self) -> int:
        _, seq = await self._call("unhalt", 0, "")
        return int(seq)

    async def state(self) -> GateState:
        armed, high, holder, halted, seq = await self._call("state", 0, "")
        why = halted.decode("utf-8", "replace")
        return GateState(bool(armed), high, holder.decode("utf-8", "replace"), why or None, seq)

    async def decisions(self, limit: int = 1_000_000) -> list[Decision]:
        """What the gate recorded (with `record_max`), oldest first."""
        async with _Patience(self._where, CONNECT_TIMEOUT_S):
            lines = await self._redis.xrange(self._record_key, count=limit)
        found = []
        for _, raw in lines:
            f = {k.decode(): v.decode("utf-8", "replace") for k, v in raw.items()}
            found.append(Decision(int(f["seq"]), f["op"], int(f["token"]), int(f["high"]), f["subject"], f["verdict"]))
        return found

    async def _call(self, op: str, token: int, text: str, ids: Sequence[str] = ()) -> Any:
        if not 0 <= token <= _TOKEN_MAX:
            raise ValueError(f"token {token} is not between 0 and {_TOKEN_MAX}")
        keys = (self._state_key, self._record_key, *[self._claim_prefix + i for i in ids])
        args = (*keys, op, token, text, self._ttl_ms, self._record_max, *(ids if self._record_max else ()))
        if not self._sha:
            raise GateUnavailable(f"{self._where} was not checked yet; connect first")
        async with _Patience(self._where, self._timeout_s):
            try:
                return await self._redis.evalsha(self._sha, len(keys), *args)
            except NoScriptError:  # nothing ran; EVAL loads it again
                return await self._redis.eval(_SCRIPT, len(keys), *args)


class _Patience:
    """One deadline around connecting, asking and hearing; whatever goes wrong becomes GateUnavailable."""

    __slots__ = ("_timeout", "_timeout_s", "_where")

    def __init__(self, where: str, timeout_s: float) -> None:
        self._where, self._timeout_s = where, timeout_s
        self._timeout = asyncio.timeout(timeout_s)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError as e:
            raise GateUnavailable(f"no answer from {self._where} within {self._timeout_s} s") from e
        if isinstance(error, RedisError | OSError):
            raise GateUnavailable(f"{self._where}: {type(error).__name__}: {error}") from error


def _where(url: str) -> str:
    """host:port (or the socket's path) for messages, without the password. Raises ValueError for an option in the
    query that is not about TLS: redis-py would let it undo our timeouts."""
    parts = urlsplit(url)
    for key in parse_qs(parts.query):
        if not key.startswith("ssl_"):
            raise ValueError(f"option {key!r} is not allowed in it, only ssl_... ones")
    return f"Redis at {parts.hostname}:{parts.port or 6379}" if parts.hostname else f"Redis at {parts.path}"


def _judge_server(where: str, info: dict[str, Any]) -> list[str]:
    """Refuse what could let a stale order through; warn of what only costs time. Returns the warnings."""
    version = str(info.get("redis_version", "0"))
    if int(version.split(".")[0]) < REDIS_MAJOR_MIN:
        raise GateUnsuitable(f"gate.url: {where} is version {version}; the gate needs {REDIS_MAJOR_MIN} or newer")
    policy = info.get("maxmemory_policy")
    if policy != "noeviction":
        raise GateUnsuitable(
            f"gate.url: {where} has maxmemory-policy {policy}: short of memory it would forget claims and tokens; "
            "run `redis-cli config set maxmemory-policy noeviction`, and put it in redis.conf"
        )
    if info.get("role") != "master":
        raise GateUnavailable(f"{where} is a replica; point gate.url at the primary")
    if not info.get("aof_enabled"):
        return [f"{where} has appendonly no: a restart forgets all claims; set it, and appendfsync always"]
    return []


class GateClaimer:
    """Claims for one term. While one call to the gate is in flight, new claims gather and go together in the next:
    a lone claim waits for nobody, a thousand cost a few round trips. Run `run` in the node's TaskGroup."""

    def __init__(self, gate: Gate, token: int, *, batch_max: int = 256, waiting_max: int = 8192) -> None:
        """batch_max: bounds how long one script holds Redis (256 take about 1 ms)."""
        self._gate = gate
        self._token = token
        self._batch_max = batch_max
        self._waiting_max = waiting_max
        self._waiting: deque[tuple[str, asyncio.Future[ClaimResult]]] = deque()
        self._in_flight: list[tuple[str, asyncio.Future[ClaimResult]]] = []
        self._wake = asyncio.Event()
        self._ended = False

    def claim(self, client_order_id: str) -> asyncio.Future[ClaimResult]:
        """A future of the verdict; it fails with GateUnavailable. Cancelling it does not unsay the claim."""
        future: asyncio.Future[ClaimResult] = asyncio.get_running_loop().create_future()
        if self._ended:
            _fail(future, "the claimer of this term has ended")
        elif len(self._waiting) >= self._waiting_max:
            _fail(future, f"{self._waiting_max} claims are waiting already")
        else:
            self._waiting.append((client_order_id, future))
            self._wake.set()
        return future

    async def run(self) -> None:
        """Serve claims until cancelled; then every open one fails. Only one `run` per claimer."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._waiting:
                    await self._serve_batch()
        finally:
            self._ended = True
            for _, future in (*self._in_flight, *self._waiting):
                _fail(future, "the claimer of this term has ended")
            self._waiting.clear()

    async def _serve_batch(self) -> None:
        size = min(self._batch_max, len(self._waiting))
        self._in_flight = batch = [self._waiting.popleft() for _ in range(size)]
        try:
            results = await self._gate.claim_many(self._token, [coid for coid, _ in batch])
        except GateUnavailable as e:
            for _, future in batch:
                _fail(future, str(e))
        else:
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)
        self._in_flight = []


def _fail(future: asyncio.Future[ClaimResult], why: str) -> None:
    if not future.done():
        future.set_exception(GateUnavailable(why))
        future.exception()  # marks it as seen: whoever asked may be gone
