"""An archive as the source of an export: whose fault it is where something fails."""

from __future__ import annotations

import sqlite3

import pytest

from slime_router.api.sessions.listing import Listing
from slime_router.export.source import ArchiveSource, SourceFailed
from tests.archives.memory import MemoryArchive
from tests.archives.test_conformance import put, said, state, turn


@pytest.mark.parametrize("fault", [OSError("it is away"), sqlite3.OperationalError("it is full")])
def test_a_source_that_cannot_be_written_is_not_taken_for_the_directory(fault, monkeypatch):
    archive = MemoryArchive()
    archive.apply([said(state(is_closed=True)), put(turn("a", 1))])
    source = ArchiveSource(archive)
    found = [each.key for each in source.sessions(Listing(), None)]
    assert [key.session_id for key in found] == ["s"]

    def failing(_: object) -> None:
        raise fault

    monkeypatch.setattr(archive, "apply", failing)
    with pytest.raises(SourceFailed, match=f"cannot be written: {fault}"):
        source.exported(found)
    source.close()
