"""agentcore-rl-toolkit's rollout gateway, served with two routes for its own two methods.

It is a library inside a trainer: `create_session` and `finish_session` are calls there. The page on
conformance has the program that puts `POST /sessions/{id}` and `POST /sessions/{id}/finish` before
them.
"""

from __future__ import annotations

from secrets import token_hex

from slime_router.conformance.adapter import Chat, GatewayError, HandedRow, Http


class Agentcore:
    """The key of a request names its session."""

    def __init__(self, http: Http) -> None:
        self._http = http

    async def open(self) -> Chat:
        """`create_session`."""
        name = token_hex(8)
        await self._http.send("POST", f"{self._http.url}/sessions/{name}")
        return Chat(f"{self._http.url}/v1", {"Authorization": f"Bearer {name}"}, name=name)

    async def rows(self, chat: Chat) -> list[HandedRow]:
        """`finish_session`: masks and log-probabilities cover the response."""
        url = f"{self._http.url}/sessions/{chat.name}/finish"
        try:
            return [
                _row(each["tokens"], each["loss_mask"], each["rollout_log_probs"])
                for each in await self._http.json("POST", url)
            ]
        except (LookupError, TypeError) as exc:
            raise GatewayError(f"the records are unreadable: {exc!r}") from exc


def _row(tokens: list[int], mask: list[int], known: list[float] | None) -> HandedRow:
    before = len(tokens) - len(mask)
    logprobs = None if known is None else [0.0] * before + known
    return HandedRow(tokens, [0] * before + mask, logprobs)
