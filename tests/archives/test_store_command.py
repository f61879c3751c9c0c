"""`slime-router store`: what a prefix holds."""

from __future__ import annotations

from secrets import token_hex

import orjson
import pytest

from slime_router.archive.opening import opened
from slime_router.archive.redis import RedisArchive
from slime_router.archive.redis_client import RedisClients
from slime_router.cli.terminal.store import store_main
from slime_router.config import JournalSettings
from slime_router.errors import SetupError
from slime_router.journal.database import Drop
from tests.archives.test_conformance import put, said, state, turn


@pytest.mark.redis
@pytest.mark.parametrize("mark", ["", "[1]*?\\\\"], ids=["plain", "with signs of patterns"])
async def test_stats_and_names_are_those_of_the_prefix(redis_url, capsys, mark):
    prefix = token_hex(6) + mark
    clients = RedisClients(redis_url, timeout_s=5.0, write_timeout_s=5.0)
    archive = RedisArchive(clients, prefix=prefix, ttl_s=1000)
    archive.apply(
        [said(state()), put(turn("a", 1)), put(turn("b", 2)), put(turn("c", 3, None), "tc")]
    )
    assert store_main(["ls", redis_url, "--prefix", prefix]) == 0
    assert capsys.readouterr().out == '"s"\n'
    assert store_main(["stats", redis_url, "--prefix", prefix, "--json"]) == 0
    found = orjson.loads(capsys.readouterr().out)
    assert found.pop("bytes") > 0
    assert found == {
        "homes": 2, "turns": 3, "sessions": 1, "names": 4, "responses": 0, "workers": 0
    }  # fmt: skip
    assert store_main(["stats", redis_url, "--prefix", prefix]) == 0
    assert "turns                    3\n" in capsys.readouterr().out
    clients.blocking.xadd(archive._log("somebody else's"), {"not": "ours"})
    archive.apply([Drop("sessions", "s", is_deleted=True)])
    assert store_main(["ls", redis_url, "--prefix", prefix]) == 0
    assert capsys.readouterr().out == ""
    await archive.close()


def test_a_store_that_does_not_answer_and_a_url_of_none(capsys):
    assert store_main(["ls", "redis://127.0.0.1:1"]) == 1
    assert "does not answer" in capsys.readouterr().err
    assert store_main(["ls", "http://user:SECRET@h"]) == 2
    error = capsys.readouterr().err
    assert "http://h" in error
    assert "SECRET" not in error


@pytest.mark.parametrize("timeout_s", [1.0, 30.0])
async def test_a_connection_waits_for_replicas_longer_than_the_server_does(timeout_s):
    """Else too few replicas would look like a server that does not answer."""
    settings = JournalSettings(
        store="redis://127.0.0.1:1", store_wait_replicas=1, store_timeout_s=timeout_s
    )
    archive = opened(settings, b"v", lambda _: None)
    assert archive is not None
    redis = archive._archive
    assert isinstance(redis, RedisArchive)
    waits = redis._clients.blocking.connection_pool.connection_kwargs["socket_timeout"]
    assert waits > redis._wait_ms / 1000
    await archive.close()


def test_a_cluster_has_no_replicas_to_wait_for():
    settings = JournalSettings(store="redis+cluster://127.0.0.1:1", store_wait_replicas=1)
    with pytest.raises(SetupError, match="cannot be used with a cluster"):
        opened(settings, b"v", lambda _: None)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://u:SECRET@h/x", "redis://h/x cannot be used: after the host stands"),
        ("redis://u:SECRET@h/-1", "after the host stands"),
        ("redis://h?db=a&password=SECRET", "redis://h cannot be used: an option is wrong"),
        ("redis://h?x=y&password=SECRET", "it has an option 'x'"),
        ("redis://h?decode_responses=1", "it has an option 'decode_responses'"),
        ("redis://h?socket_timeout=1000", "it has an option 'socket_timeout'"),
        ("redis://u:SECRET@h:99999", "a host looks like HOST:PORT"),
        ("redis://u:SECRET@[h", "a host looks like HOST:PORT"),
        ("redis://u:SEC/SECRET@h:1", "are written %40 %2F"),
        ("redis://u:SEC#SECRET@h:1", "are written %40 %2F"),
        ("redis://u:SEC?SECRET@h:1", "are written %40 %2F"),
        ("redis://h/0?password=SEC@SECRET", "are written %40 %2F"),
        ("u:SECRET@h:1", "--store URL cannot be used: it begins with redis://"),
        ("redis:/u:SECRET@h", "--store URL cannot be used: it begins with redis://"),
        ("REDIS://u:SECRET@h", "it begins with redis://"),
        ("redis+cluster://u:SECRET@", "a host is missing"),
        ("redis+cluster://u:SECRET@h/1", "after the host stands"),
        ("redis+sentinel://u:SECRET@h,/name", "a host is missing"),
        ("redis+sentinel://u:SECRET@h/name?password=SECRET", "the name of the primary"),
        ("redis+sentinel://u:SECRET@h/name/2", "the name of the primary"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_its_password(url, said):
    with pytest.raises(SetupError) as caught:
        RedisClients(url, timeout_s=1.0, write_timeout_s=1.0)
    assert said in caught.value.message
    assert "SEC" not in caught.value.message


def test_a_url_is_shown_without_its_password():
    for url, shown in (
        ("redis://u:SECRET@h:1/2?client_name=a&password=SECRET", "redis://h:1/2"),
        ("redis://:SEC%40%2F%3F%23RET@h", "redis://h"),
        ("unix://u:SECRET@/tmp/socket?db=3", "unix:///tmp/socket"),
        ("rediss+sentinel://u:SECRET@h:1,g/name", "rediss+sentinel://h:1,g/name"),
    ):
        clients = RedisClients(url, timeout_s=1.0, write_timeout_s=1.0)
        assert clients.shown == shown
        assert "SEC" not in repr(clients)


def test_the_account_and_tls_of_a_sentinels_url_are_those_of_the_primary():
    url = "rediss+sentinel://u:a%40b@h:1/primary"
    for client in vars(RedisClients(url, timeout_s=1.0, write_timeout_s=1.0)).values():
        if not hasattr(client, "connection_pool"):
            continue
        pool = client.connection_pool
        assert (pool.connection_kwargs["username"], pool.connection_kwargs["password"]) == (
            "u",
            "a@b",
        )
        assert "SSL" in pool.connection_class.__name__
        [sentinel] = pool.sentinel_manager.sentinels
        kwargs = sentinel.connection_pool.connection_kwargs
        assert "SSL" in sentinel.connection_pool.connection_class.__name__
        assert kwargs.get("password") is None


def test_a_cluster_that_is_away_says_so(capsys):
    assert store_main(["ls", "redis+cluster://127.0.0.1:1"]) == 1
    assert "does not answer" in capsys.readouterr().err
    assert store_main(["stats", "redis+cluster://127.0.0.1:1"]) == 1


def test_urls_of_clusters_and_sentinels_are_read():
    clients = RedisClients("redis+sentinel://h:1,g:2/primary", timeout_s=1.0, write_timeout_s=1.0)
    assert "primary" in repr(clients.blocking.connection_pool)
    with pytest.raises(SetupError, match="primary is missing"):
        RedisClients("redis+sentinel://h:1", timeout_s=1.0, write_timeout_s=1.0)
