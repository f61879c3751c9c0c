"""Which archive or journal the settings ask for."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from slime_router.archive.shared import SharedArchive
from slime_router.archive.sqlite import SqliteArchive
from slime_router.config import JournalSettings
from slime_router.errors import SetupError
from slime_router.journal.journal import Journal

WRITE_TIMEOUT_S = 5.0  # many changes at once


def opened(
    config: JournalSettings, vocabulary: bytes, on_end: Callable[[str], None]
) -> Journal | SharedArchive | None:
    """What these settings ask for, if they do.

    `vocabulary` tells this vocabulary from others: ids of another one mean nothing here.

    Raises:
        SetupError: it cannot be opened, is in use, or belongs to another vocabulary.
    """
    if config.store is not None:
        return _in_redis(config, config.store, vocabulary, on_end)
    if config.journal is None:
        return None
    directory = Path(config.journal)
    if not config.journal_shared and config.max_memory is None:
        return Journal(
            directory,
            sync=config.journal_sync,
            on_error=config.journal_on_error,
            vocabulary=vocabulary,
            on_end=on_end,
        )
    archive = SqliteArchive(directory, sync=config.journal_sync)
    if archive.database.bind("vocabulary", vocabulary) != vocabulary:
        archive.database.close()
        raise SetupError(f"the journal {directory} holds the tokens of another checkpoint")
    return SharedArchive(
        archive,
        vocabulary=vocabulary,
        must_be_there=config.journal_on_error == "stop",
        on_end=on_end,
        max_bytes=config.max_memory,
    )


def _in_redis(
    config: JournalSettings, url: str, vocabulary: bytes, on_end: Callable[[str], None]
) -> SharedArchive:
    if config.journal is not None:
        raise SetupError("--store and --journal are two places for the same: give one of them")
    try:
        from slime_router.archive.redis import RedisArchive
        from slime_router.archive.redis_client import RedisClients
    except ImportError as exc:
        raise SetupError("--store needs the extra: pip install 'slime-router[redis]'") from exc
    clients = RedisClients(
        url,
        timeout_s=config.store_timeout_s,
        write_timeout_s=max(config.store_timeout_s, WRITE_TIMEOUT_S),
    )
    return SharedArchive(
        RedisArchive(clients, prefix=config.store_prefix, ttl_s=math.ceil(config.store_ttl_s)),
        vocabulary=vocabulary,
        must_be_there=config.store_on_error == "stop",
        on_end=on_end,
        max_bytes=config.max_memory,
    )
