"""One answer out of several nodes' documents."""

from __future__ import annotations

import pytest

from cluster.core.errors import ConfigError
from node.client import check_url, merge
from tests.support.node_api import row, status


def names(document: dict) -> dict[str, str]:  # type: ignore[type-arg]
    return {r["name"]: r["role"] for r in document["nodes"]}


def test_the_leader_is_believed_before_a_standby_with_an_old_view() -> None:
    old = status("n2", "n1", 5, [row("n1", "leader"), row("n2", "standby")])
    new = status("n3", "n3", 9, [row("n1", "standby"), row("n2", "standby"), row("n3", "leader")])
    for documents in ([old, new], [new, old]):
        assert merge(documents)["leader"]["node"] == "n3"


def test_a_leader_that_does_not_know_any_more_is_not_believed() -> None:
    unknown = {"level": "blocked", "reason": "unknown"}
    cut_off = status("n1", "n1", 5, [row("n1", "unknown")], permission=unknown)
    fresh = status("n2", "n2", 9, [row("n2", "leader")])
    assert merge([cut_off, fresh])["leader"]["token"] == 9
    bystander = status("n3", None, 0, [row("n3", "standby")])
    assert merge([cut_off, bystander])["permission"]["reason"] == "no leader"


def test_each_node_speaks_for_itself_and_the_leader_for_the_lag() -> None:
    leader = status("n1", "n1", 5, [row("n1", "leader"), row("n2", "standby", log_index=7, lag_entries=3)])
    itself = status("n2", "n1", 5, [row("n2", "fenced", log_index=9, lag_entries=1, feed_age_s=2.5)])
    told = {r["name"]: r for r in merge([leader, itself])["nodes"]}["n2"]
    assert (told["role"], told["log_index"], told["feed_age_s"], told["lag_entries"]) == ("fenced", 9, 2.5, 3)


def test_who_answered_and_who_did_not_is_said() -> None:
    leader = status("n1", "n1", 5, [row("n1", "leader"), row("n2", "standby")])
    merged = merge([leader], ["http://h:1 does not answer: Connection refused"])
    assert merged["answered"] == ["n1"]
    assert merged["warnings"] == ["http://h:1 does not answer: Connection refused."]


def test_a_node_that_only_it_knows_of_is_listed() -> None:
    leader = status("n1", "n1", 5, [row("n1", "leader")])
    stranger = status("n9", None, 0, [row("n9", "starting")])
    assert names(merge([leader, stranger])) == {"n1": "leader", "n9": "starting"}


def test_two_that_say_they_lead_is_a_warning_that_comes_first() -> None:
    a = status("n1", "n1", 5, [row("n1", "leader")], warnings=["something else"])
    b = status("n2", "n2", 9, [row("n2", "leader")])
    merged = merge([a, b])
    assert merged["leader"]["token"] == 9
    assert merged["warnings"][0].startswith("n1 and n2 each say that they lead")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("127.0.0.1:8008", "http://127.0.0.1:8008"),
        ("https://h/x/", "https://h/x"),
        ("http://[::1]:80", "http://[::1]:80"),
    ],
)
def test_a_url_may_be_short(given: str, kept: str) -> None:
    assert check_url(given) == kept


@pytest.mark.parametrize("given", ["ftp://h:1", "http://", "http://h:99999", "http://h:1?x=1", ""])
def test_what_is_no_url_is_refused_by_name(given: str) -> None:
    with pytest.raises(ConfigError, match="write http://host:port"):
        check_url(given)
