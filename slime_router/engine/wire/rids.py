"""What generations are called at workers: no name begins with another, whatever clients choose.

SGLang aborts every generation whose rid begins with that of an abort (`abort_request` in
managers/scheduler.py), and refuses a rid that it is answering already.
"""

from __future__ import annotations

import re

from slime_router.types import GenerateCall

RID_MARK = "#"  # begins every rid that this router gives a worker for a call, but for UUIDs
_UUID = re.compile(r"[0-9a-f]{32}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_UUIDS = ("0" * 32, "00000000-0000-0000-0000-000000000000")  # one of each form


def worker_rid(rid: str) -> str:
    """The rid that a worker gets for `rid`, with its length in front.

    A UUID begins no other, and stays as it is: some trainers abort by it at the workers.
    """
    return rid if _UUID.fullmatch(rid) else f"{RID_MARK}{len(rid)}:{rid}"


def name_at_worker(call: GenerateCall) -> str:
    """The rid that a worker gets for a call.

    A client may choose one that looks like that of a sample, or of a later part of another reply:
    those have a second mark.
    """
    is_own = not call.asked_as or call.asked_as == call.rid
    return worker_rid(call.rid) if is_own else f"{RID_MARK}{RID_MARK}{len(call.rid)}:{call.rid}"


def passed_rid(rid: str) -> str:
    """The rid that a worker gets for what is passed on: as it came, unless a UUID may begin so."""
    may_be = any(_UUID.fullmatch(rid + each[len(rid) :]) for each in _UUIDS)
    return worker_rid(rid) if may_be or rid.startswith(RID_MARK) else rid
