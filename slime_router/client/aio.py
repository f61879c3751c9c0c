"""The client for code that awaits. One client serves any number of tasks of one event loop.

`make sync-client` makes `slime_router.client.sync` from this file.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Self, Unpack

from slime_router.client import calls
from slime_router.client.address import Address
from slime_router.client.aio_transport import AsyncTransport
from slime_router.client.calls import TRIES, Call, InFlight, Reward, RowOptions, SessionOptions
from slime_router.client.errors import ClientError, TimedOut, Unreachable
from slime_router.client.rows import Export, ExportReader, read_npz
from slime_router.client.summary import Summary, read_summaries, read_summary
from slime_router.client.trees import Tree, read_tree


class AsyncClient:
    """A router, as a trainer sees it. Use it in an `async with` block.

    Args:
        url: where the router listens.
        timeout_s: the longest that it may be silent in the middle of a call.
        headers: sent with every call.

    All methods raise `ClientError`: Unreachable if no complete answer came (calls that only read
    were retried), TimedOut if the router was silent for too long, Refused if it said no, BadReply
    if it is not a router.
    """

    def __init__(
        self,
        url: str = "http://localhost:30001",
        *,
        timeout_s: float = 60.0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._address = Address.of(url)
        self._transport = AsyncTransport(self._address, timeout_s=timeout_s, headers=headers or {})

    def __repr__(self) -> str:
        return f"<AsyncClient of {self.url}>"

    async def __aenter__(self) -> Self:
        await self._transport.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._transport.close()

    @property
    def url(self) -> str:
        """Where the router listens, without a slash at the end."""
        return self._address.url

    async def open_session(self, **options: Unpack[SessionOptions]) -> AsyncSession:
        """A new session; leaving its `async with` block closes it."""
        return AsyncSession(self, read_summary(await self.send(calls.open_session(options))))

    async def get_session(self, session_id: str) -> AsyncSession:
        """A session that exists already."""
        return AsyncSession(self, read_summary(await self.send(calls.read_session(session_id))))

    async def list_sessions(
        self,
        *,
        group_id: str | None = None,
        rollout_id: str | None = None,
        state: str | None = None,
    ) -> tuple[Summary, ...]:
        """The sessions of a group, of a rollout, in a state; all without any of these."""
        call = calls.list_sessions(group_id=group_id, rollout_id=rollout_id, state=state)
        return read_summaries(await self.send(call))

    def rows(
        self,
        *,
        session_ids: Sequence[str] | None = None,
        group_id: str | None = None,
        rollout_id: str | None = None,
        **options: Unpack[RowOptions],
    ) -> AsyncIterator[Export]:
        """The rows of many sessions, one session after the other as they come in.

        Raises:
            Refused: after all others, where a session could not be exported.
        """
        call = calls.many_rows(
            session_ids=session_ids, group_id=group_id, rollout_id=rollout_id, options=options
        )
        return self._exports(call)

    async def detokenize(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Tokens as the model's own tokenizer reads them."""
        call = calls.detokenize(tokens, skip_special_tokens=skip_special_tokens)
        return calls.read_text(await self.send(call))

    async def send(self, call: Call) -> bytes:
        """The body of the answer."""
        for _ in range(TRIES - 1 if call.is_repeatable else 0):
            try:
                return await self._send_once(call)
            except TimedOut:
                raise
            except Unreachable:
                continue
        return await self._send_once(call)

    async def _send_once(self, call: Call) -> bytes:
        async with self._transport.answer(call) as answer:
            return await answer.read()

    async def _exports(self, call: Call) -> AsyncIterator[Export]:
        reader = ExportReader()
        async with self._transport.answer(call) as answer:
            async for block in answer.blocks():
                for export in reader.feed(block):
                    yield export
        reader.finish()


class AsyncSession:
    """A session of the router. `base_url` is what an OpenAI agent is given."""

    def __init__(self, client: AsyncClient, opened: Summary) -> None:
        self._client = client
        self._is_deleted = False
        self.id = opened.session_id
        self.group_id = opened.group_id
        self.rollout_id = opened.rollout_id
        self.url = client.url + calls.session_path(self.id)
        self.base_url = f"{self.url}/v1"

    def __repr__(self) -> str:
        return f"<AsyncSession {self.id} of {self._client.url}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes it, so that nobody adds to it; its turns stay until it is deleted."""
        if self._is_deleted:
            return
        try:
            await self.close(in_flight="wait" if error is None else "cancel")
        except ClientError as failure:
            if error is None:
                raise
            error.add_note(f"and the session '{self.id}' could not be closed: {failure}")

    async def summary(self) -> Summary:
        """The session as it is now."""
        return await self._read(calls.read_session(self.id))

    async def close(self, *, in_flight: InFlight = "wait", timeout_s: float = 30.0) -> Summary:
        """Freeze it: no new turns. Closing it again changes nothing.

        Args:
            in_flight: whether to wait for generations in progress, or to end them.
            timeout_s: how long to wait for them; then they are ended.
        """
        call = calls.close_session(self.id, in_flight=in_flight, timeout_s=timeout_s)
        return await self._read(call)

    async def set_reward(self, reward: Reward) -> Summary:
        """Set what the rollout earned: a number, or several by name.

        Raises:
            Conflict: another session of this rollout has another reward.
        """
        return await self._read(calls.reward_session(self.id, reward))

    async def reward_turn(self, turn_id: str, reward: float | None) -> None:
        """Set what one of its turns earned by itself; None takes it back."""
        await self._client.send(calls.reward_turn(turn_id, reward))

    async def tag_turn(self, turn_id: str, *tags: str) -> None:
        """Give one of its turns these tags, in place of those that it had."""
        await self._client.send(calls.tag_turn(turn_id, tags))

    async def score(
        self, worker_group: str, *, top_logprobs: int = 0, **options: Unpack[RowOptions]
    ) -> None:
        """Have a group of workers, such as a teacher, score its rows, which keep the scores.

        Args:
            top_logprobs: how many of the likeliest tokens are kept at each position.
        """
        call = calls.score_session(
            self.id, worker_group, top_logprobs=top_logprobs, options=options
        )
        await self._client.send(call)

    async def rows(self, **options: Unpack[RowOptions]) -> Export:
        """The session's rows as they are now."""
        return read_npz(self.id, await self._client.send(calls.session_rows(self.id, options)))

    async def tree(self, **options: Unpack[RowOptions]) -> Tree:
        """The session's rows as one tree; `slime_router.client.expand` turns it back into rows."""
        return read_tree(await self._client.send(calls.session_tree(self.id, options)))

    async def delete(self) -> None:
        """Delete it and its turns; generations in flight are ended."""
        await self._client.send(calls.delete_session(self.id))
        self._is_deleted = True

    async def _read(self, call: Call) -> Summary:
        return read_summary(await self._client.send(call))
