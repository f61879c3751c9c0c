"""slime_router: a session is opened, and its rows are read."""

from __future__ import annotations

from slime_router.conformance.adapter import Chat, HandedRow, Http


class SlimeRouter:
    """Sessions and rows over HTTP."""

    def __init__(self, http: Http) -> None:
        self._http = http

    async def open(self) -> Chat:
        """`POST /sessions`."""
        opened = await self._http.json("POST", f"{self._http.url}/sessions", json={})
        return Chat(opened["base_url"], name=opened["session_id"])

    async def rows(self, chat: Chat) -> list[HandedRow]:
        """`GET /sessions/{id}/rows`."""
        url = f"{self._http.url}/sessions/{chat.name}/rows"
        export = await self._http.json("GET", url)
        return [
            HandedRow(row["tokens"], row["loss_mask"], row["logprobs"]) for row in export["rows"]
        ]
