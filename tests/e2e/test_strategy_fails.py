"""A user's strategy that is wrong: while it trades, when it is loaded, and when it is not there at all."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path

import pytest

from node.client import get_json
from tests.support.e2e import SLACK_S, Drill, accepted_later_than, baton, busy_options, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

BOT = '''
from pathlib import Path

from chaos.strategies import Busy
from node.strategy import Role

ASKED = Path(__file__).with_name("asked")


class Bot(Busy):
    """Raises in the callback that the file `asked` names, once, and only while it leads."""

    leads = False

    def _mistake(self, name):
        if self.leads and ASKED.exists() and ASKED.read_text() == name:
            ASKED.unlink()
            raise ValueError(f"a mistake in {name}")

    def on_market(self, ctx, event):
        self._mistake("on_market")
        return super().on_market(ctx, event)

    def on_order(self, ctx, order):
        self._mistake("on_order")
        return super().on_order(ctx, order)

    def on_fill(self, ctx, fill):
        self._mistake("on_fill")

    def on_timer(self, ctx, timer_id):
        self._mistake("on_timer")
        return super().on_timer(ctx, timer_id)

    def on_role(self, ctx, role, reason):
        self.leads = role is Role.ACTIVE
        self._mistake("on_role")
        return super().on_role(ctx, role, reason)

    def snapshot(self):
        self._mistake("snapshot")
        return super().snapshot()

    def fingerprint(self):
        self._mistake("fingerprint")
        return super().fingerprint()
'''

BROKEN = {
    "raises_at_start": (
        "from node.strategies.probe import Probe\n\n\nclass Bot(Probe):\n"
        "    def on_start(self, ctx):\n        raise KeyError('no such model')\n"
    ),
    "raises_at_import": "import this_is_not_installed\n",
    "is_not_python": "class Bot(:\n",
    "is_no_strategy": "class Bot:\n    pass\n",
    "refuses": (
        "from node.strategy import Strategy\n\n\nclass Bot(Strategy):\n"
        "    def __init__(self, config):\n        raise ValueError(f\"lots = {config['lots']} must be even\")\n"
    ),
}


@pytest.fixture(scope="module")
def bots(module_directory: Path) -> Path:
    """A user's own directory with modules, from which the commands are run."""
    made = module_directory / "bots"
    made.mkdir()
    (made / "mybot.py").write_text(BOT)
    for name, text in BROKEN.items():
        (made / f"{name}.py").write_text(text)
    return made


@pytest.fixture(scope="module")
def trading(module_directory: Path, bots: Path) -> Drill:
    """Two nodes and one etcd member, with the user's strategy from the user's directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(bots)
        patch.syspath_prepend(str(bots))
        made = Drill(module_directory / "D", busy_options(strategy="mybot:Bot", nodes=2, etcd=1, feed="synthetic"))
        made.start()
    return made


def mended(d: Drill) -> tuple[str, int]:
    """A restart of the node mends a strategy that failed: kill a leader that is blocked by one. (leader, token)"""
    status = until("somebody leads", lambda: found if (found := d.status())["leader"] else None)
    if status["permission"]["reason"].startswith("strategy:"):
        restart(d, status["leader"]["node"])
        d.new_leader(status["leader"]["token"])
    return d.healthy()


def restart(d: Drill, node: str) -> None:
    d.both(node)[1].send(signal.SIGKILL)


@pytest.mark.parametrize(
    ("callback", "event"),
    [
        ("on_market", "(quote|trade|depth)"),
        ("on_order", "order"),
        ("on_fill", "fill"),
        ("on_timer", "timer"),
        ("fingerprint", "fingerprint"),
    ],
)
def test_callback_that_raises_blocks_new_orders_and_nothing_else(
    trading: Drill, bots: Path, callback: str, event: str
) -> None:
    d = trading
    leader, token = mended(d)
    begun = d.seq
    (bots / "asked").write_text(callback)
    reason = d.permission("blocked", f"a mistake in {callback}")["reason"]
    failed_at = time.time_ns()
    assert re.fullmatch(f"strategy: {event} raised ValueError: a mistake in {callback}", reason)
    told = get_json(d.cluster.http_url(leader), "/v1/status")
    assert told["permission"] == {"level": "blocked", "reason": reason}
    assert any(reason.removeprefix("strategy: ") in w and "restart the node" in w for w in told["warnings"])
    shown = baton("status", "--dir", d.cluster.dir)
    assert f"BLOCKED ({reason})" in shown.stdout and "Traceback" not in shown.stdout + shown.stderr
    # Cancels that were asked for are carried out; the lease is kept, so that they can be.
    until("no cancel is left over", lambda: not [o for o in _orders(d, leader) if o["cancel_requested"]])
    time.sleep(2 * SLACK_S)  # nothing may happen: only time can show that
    assert accepted_later_than(d, begun, failed_at, SLACK_S) == []
    leads = d.status()["leader"]
    assert (leads["node"], leads["token"]) == (leader, token)
    restart(d, leader)
    assert d.new_leader(token)[0] != leader


def _orders(d: Drill, node: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = get_json(d.cluster.http_url(node), "/v1/orders")["orders"]
    return found


def test_strategy_that_cannot_give_its_state_does_not_stop_a_switchover(trading: Drill, bots: Path) -> None:
    d = trading
    leader, token = mended(d)
    (bots / "asked").write_text("snapshot")
    d.switch_over(leader)
    assert d.new_leader(token)[0] != leader
    assert "a mistake in snapshot" in d.log(leader)
    restart(d, leader)  # its strategy has failed; a restart mends it
    d.healthy()


def test_successor_whose_strategy_fails_when_told_to_trade_is_blocked_and_says_so(trading: Drill, bots: Path) -> None:
    d = trading
    leader, _ = mended(d)
    (bots / "asked").write_text("on_role")
    d.switch_over(leader)
    d.permission("blocked", "strategy: role raised ValueError: a mistake in on_role")
    assert d.status()["leader"]["node"] != leader
    mended(d)


def test_after_all_those_mistakes_nothing_is_lost_doubled_or_stale(trading: Drill) -> None:
    mended(trading)
    trading.trades_on()
    trading.holds()


# -- strategies that never trade ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "config", "said"),
    [
        ("nosuchbot:Bot", "", "module 'nosuchbot' is not found"),
        ("mybot:Boot", "", "module mybot has no class 'Boot'; it has: Bot"),
        ("is_no_strategy:Bot", "", "Bot is not a subclass of node.strategy.Strategy"),
        ("raises_at_import:Bot", "", "module 'this_is_not_installed' is not found"),
        ("is_not_python:Bot", "", "importing is_not_python failed: SyntaxError"),
        ("refuses:Bot", "lots = 3", "lots = 3 must be even"),
        ("node.strategies.market_maker:MarketMaker", "qty_lotz = 3", "unknown key qty_lotz = 3"),
        ("mybot.Bot", "", "strategy.path = mybot.Bot: package.module:Class"),
    ],
)
def test_strategy_that_cannot_be_loaded_is_refused_before_anything_starts(
    directory: Path, bots: Path, path: str, config: str, said: str
) -> None:
    overlay = directory / "overlay.toml"
    overlay.write_text(f"[strategy.config]\n{config}\n")
    where = directory / "D"
    ran = baton("up", "--dir", where, "--detach", "--strategy", path, "--config-overlay", overlay, cwd=bots)
    assert ran.returncode == 1
    assert said in ran.stderr and "Traceback" not in ran.stderr
    assert not (where / "cluster.json").exists()


def test_the_doctor_says_what_is_wrong_with_a_strategy(directory: Path, bots: Path, trading: Drill) -> None:
    text = trading.cluster.config_file("n2").read_text().replace("mybot:Bot", "mybot:Boot")
    file = directory / "baton.toml"
    file.write_text(text.replace(str(trading.cluster.journal_dir("n2")), str(directory / "data")))
    ran = baton("doctor", "--config", file, "-o", "json", cwd=bots)
    assert ran.returncode == 1
    (finding,) = [f for f in json.loads(ran.stdout)["findings"] if f["check"] == "strategy"]
    assert finding["level"] == "fail" and "has no class 'Boot'" in finding["text"] and finding["remedy"]


def test_strategy_that_raises_at_start_keeps_the_cluster_from_starting_and_says_so(directory: Path, bots: Path) -> None:
    begun = time.monotonic()
    ran = baton(
        "up", "--dir", directory / "D", "--detach", "--strategy", "raises_at_start:Bot",
        "--nodes", "2", "--etcd", "1", "--feed", "synthetic", cwd=bots,
    )  # fmt: skip
    assert ran.returncode == 1
    assert "strategy: start raised KeyError: 'no such model'" in ran.stderr and "Traceback" not in ran.stderr
    assert time.monotonic() - begun < 25.0
