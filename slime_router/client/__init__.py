"""The client for trainers: opens sessions, rewards them, and reads their rows.

    with Client("http://localhost:30001") as client:
        with client.open_session(group_id="prompt-7") as session:
            agent(base_url=session.base_url)  # any OpenAI agent, unmodified
        session.set_reward(1.0)
        for row in session.rows().rows:
            train(row.tokens, row.loss_mask, row.logprobs)

`Client` needs numpy and nothing else. `AsyncClient` needs aiohttp, which is loaded with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slime_router.client.advantages import Rewarded, group_advantages
from slime_router.client.calls import InFlight, Reward, RowOptions, SessionOptions
from slime_router.client.errors import (
    BadReply,
    ClientError,
    Conflict,
    NotFound,
    Refused,
    StorageFull,
    TimedOut,
    TooManyRequests,
    Unreachable,
)
from slime_router.client.row_turns import RowTurn
from slime_router.client.rows import Export, LeftOut, Row, RowStats
from slime_router.client.summary import Summary
from slime_router.client.sync import Client, Session
from slime_router.client.teachers import Teacher
from slime_router.client.trees import Tree, TreeNode, expand, read_tree

if TYPE_CHECKING:
    from slime_router.client.aio import AsyncClient, AsyncSession

__all__ = [
    "AsyncClient",
    "AsyncSession",
    "BadReply",
    "Client",
    "ClientError",
    "Conflict",
    "Export",
    "InFlight",
    "LeftOut",
    "NotFound",
    "Refused",
    "Reward",
    "Rewarded",
    "Row",
    "RowOptions",
    "RowStats",
    "RowTurn",
    "Session",
    "SessionOptions",
    "StorageFull",
    "Summary",
    "Teacher",
    "TimedOut",
    "TooManyRequests",
    "Tree",
    "TreeNode",
    "Unreachable",
    "expand",
    "group_advantages",
    "read_tree",
]


def __getattr__(name: str) -> Any:
    if name in ("AsyncClient", "AsyncSession"):
        from slime_router.client import aio  # here, so that `Client` does without aiohttp

        return getattr(aio, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
