"""rLLM's model gateway: sessions, and a trace of each reply with the ids that its worker named."""

from __future__ import annotations

from slime_router.conformance.adapter import Chat, GatewayError, HandedRow, Http


class Rllm:
    """`/sessions`, chat below it, `/sessions/{id}/traces` at the end; it writes traces later."""

    def __init__(self, http: Http) -> None:
        self._http = http

    async def open(self) -> Chat:
        """`POST /sessions`."""
        opened = await self._http.json("POST", f"{self._http.url}/sessions", json={})
        name = str(opened["session_id"])
        return Chat(f"{self._http.url}/sessions/{name}/v1", name=name)

    async def rows(self, chat: Chat) -> list[HandedRow]:
        """A sample for each trace."""
        await self._http.json("POST", f"{self._http.url}/admin/flush")
        url = f"{self._http.url}/sessions/{chat.name}/traces"
        traces = await self._http.json("GET", url)
        try:
            return [
                _row(trace["prompt_token_ids"], trace["completion_token_ids"], trace["logprobs"])
                for trace in traces
            ]
        except (LookupError, TypeError) as exc:
            raise GatewayError(f"the traces are unreadable: {exc!r}") from exc


def _row(prompt: list[int], ids: list[int], known: list[float] | None) -> HandedRow:
    is_whole = known is not None and len(known) == len(ids)
    logprobs = [0.0] * len(prompt) + list(known or ()) if is_whole else None
    return HandedRow([*prompt, *ids], [0] * len(prompt) + [1] * len(ids), logprobs)
