"""miles' session server, and whatever serves its tracer: sessions, and samples in safetensors."""

from __future__ import annotations

import orjson
import safetensors.numpy

from slime_router.conformance.adapter import Chat, GatewayError, HandedRow, Http


class Miles:
    """`/sessions`, chat below it, `/samples` at the end."""

    def __init__(self, http: Http) -> None:
        self._http = http

    async def open(self) -> Chat:
        """`POST /sessions`."""
        opened = await self._http.json("POST", f"{self._http.url}/sessions", json={})
        name = str(opened["session_id"])
        return Chat(f"{self._http.url}/sessions/{name}/v1", name=name)

    async def rows(self, chat: Chat) -> list[HandedRow]:
        """`POST /sessions/{id}/samples`; masks and log-probabilities cover the response."""
        url = f"{self._http.url}/sessions/{chat.name}/samples"
        try:
            arrays = safetensors.numpy.load(await self._http.send("POST", url, json={}))
            samples = orjson.loads(arrays["_samples_meta"].tobytes())["samples"]
        except (ValueError, LookupError, safetensors.SafetensorError) as exc:
            raise GatewayError(f"the samples are unreadable: {exc!r}") from exc
        rows = []
        for index in range(len(samples)):
            tokens = arrays[f"tokens.{index}"].tolist()
            mask = arrays[f"loss_mask.{index}"].tolist()
            before = len(tokens) - len(mask)
            known = arrays.get(f"rollout_log_probs.{index}")
            logprobs = None if known is None else [0.0] * before + known.tolist()
            rows.append(HandedRow(tokens, [0] * before + mask, logprobs))
        return rows
