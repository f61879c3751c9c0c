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
async def test_stats_and_names_are_those_of_the_prefix(redis_url, capsys):
    prefix = token_hex(6)
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


def test_a_cluster_has_no_replicas_to_wait_for():
    settings = JournalSettings(store="redis+cluster://127.0.0.1:1", store_wait_replicas=1)
    with pytest.raises(SetupError, match="cannot be used with a cluster"):
        opened(settings, b"v", lambda _: None)


def test_urls_of_clusters_and_sentinels_are_read():
    clients = RedisClients("redis+sentinel://h:1,g:2/primary", timeout_s=1.0, write_timeout_s=1.0)
    assert "primary" in repr(clients.blocking.connection_pool)
    with pytest.raises(SetupError, match="primary is missing"):
        RedisClients("redis+sentinel://h:1", timeout_s=1.0, write_timeout_s=1.0)
