"""Which archive or journal the settings ask for."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from slime_router.archive.shared import STORE, SharedArchive, Wording
from slime_router.archive.sqlite import SqliteArchive
from slime_router.config import JournalSettings, SessionSettings
from slime_router.errors import SetupError
from slime_router.journal.retention import Retention, RetentionLimits

WRITE_TIMEOUT_S = 5.0  # many changes at once
JOURNAL = Wording(
    "journal", "not in the journal", "The journal cannot be written; the router stops."
)


def opened(
    config: JournalSettings,
    vocabulary: bytes,
    on_end: Callable[[str], None],
    *,
    idle_s: float = SessionSettings.session_idle_s,
) -> SharedArchive | None:
    """What these settings ask for, if they do.

    Args:
        vocabulary: tells this vocabulary from others: ids of another one mean nothing here.
        on_end: called with the reason when the router must stop.
        idle_s: after how long without a turn nobody is expected to go on.

    Raises:
        SetupError: it cannot be opened, is in use, or belongs to another vocabulary.
    """
    limits = _retention(config, idle_s)
    if config.journal_shared and config.journal is None:
        raise SetupError("--journal-shared needs --journal")
    if config.store_wait_replicas and config.store is None:
        raise SetupError("--store-wait-replicas needs --store")
    if config.store is not None:
        return _in_redis(config, config.store, vocabulary, on_end)
    if config.journal is None:
        return None
    return _in_a_file(config, Path(config.journal), limits, vocabulary, on_end)


def _retention(config: JournalSettings, idle_s: float) -> RetentionLimits:
    limits = RetentionLimits(
        max_age_s=config.journal_max_age_s,
        max_bytes=config.journal_max_bytes,
        hard_bytes=config.journal_hard_bytes,
        idle_s=idle_s,
    )
    if limits.is_any and config.journal is None:
        raise SetupError("--journal-max-age-secs, -max-bytes and -hard-bytes need --journal")
    most, hard = limits.max_bytes, limits.hard_bytes
    if most is not None and hard is not None and hard < most:
        raise SetupError(
            f"--journal-hard-bytes {hard} is less than --journal-max-bytes {most}: what was"
            " exported goes first"
        )
    return limits


def _in_a_file(
    config: JournalSettings,
    directory: Path,
    limits: RetentionLimits,
    vocabulary: bytes,
    on_end: Callable[[str], None],
) -> SharedArchive:
    is_shared, must_be_there = config.journal_shared, config.journal_on_error == "stop"
    archive = SqliteArchive(
        directory, sync=config.journal_sync, is_shared=is_shared, keeps_idles=limits.is_any
    )
    try:
        bound = archive.database.bind("vocabulary", vocabulary)
    except sqlite3.Error as exc:
        archive.let_go()
        raise SetupError(f"the journal {directory} cannot be read: {exc}") from exc
    if bound != vocabulary:
        archive.let_go()
        raise SetupError(f"the journal {directory} holds the tokens of another checkpoint")
    advice = (
        f" in {directory}: restore it, or see what `slime-router journal verify` and `export`"
        " find in it"
    )
    return SharedArchive(
        archive,
        vocabulary=vocabulary,
        must_be_there=must_be_there,
        stops_on_error=must_be_there and not is_shared,
        is_shared=is_shared,
        on_end=on_end,
        max_bytes=config.max_memory,
        retention=Retention(archive.database, limits) if limits.is_any else None,
        wording=replace(STORE if is_shared else JOURNAL, broken=advice),
    )


def _in_redis(
    config: JournalSettings, url: str, vocabulary: bytes, on_end: Callable[[str], None]
) -> SharedArchive:
    if config.journal is not None:
        raise SetupError("--store and --journal are two places for the same: give one of them")
    try:
        from slime_router.archive.redis import RedisArchive
        from slime_router.archive.redis_client import RedisClients, StoreUrl
    except ImportError as exc:
        raise SetupError("--store needs the extra: pip install 'slime-router[redis]'") from exc
    # Each server of a cluster has its own replicas.
    is_cluster = StoreUrl(url).is_cluster
    if config.store_wait_replicas and is_cluster:
        raise SetupError("--store-wait-replicas cannot be used with a cluster")
    if "{" in config.store_prefix and is_cluster:  # in braces stands what names a key's node
        raise SetupError(
            f"--store-prefix {config.store_prefix!r} cannot have a brace with a cluster: all would"
            " be kept by one node"
        )
    for_replicas_s = config.store_timeout_s if config.store_wait_replicas else 0.0
    clients = RedisClients(
        url,
        timeout_s=config.store_timeout_s,
        write_timeout_s=max(config.store_timeout_s, WRITE_TIMEOUT_S) + for_replicas_s,
    )
    archive = RedisArchive(
        clients,
        prefix=config.store_prefix,
        ttl_s=math.ceil(config.store_ttl_s),
        wait_replicas=config.store_wait_replicas,
        wait_s=for_replicas_s,
    )
    must_be_there = config.store_on_error == "stop"
    patience_s = config.store_timeout_s + for_replicas_s
    return SharedArchive(
        archive,
        patience_s=None if must_be_there else patience_s,
        shortfall=lambda: archive.refusal or archive.shortfall,
        refused=lambda: archive.refused,
        vocabulary=vocabulary,
        must_be_there=must_be_there,
        on_end=on_end,
        max_bytes=config.max_memory,
    )
