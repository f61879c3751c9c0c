"""The kit: workers that a gateway is pointed at, and the cases that it is put through."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from slime_router.conformance.adapter import Adapter, GatewayError, Http
from slime_router.conformance.cases import Cases, Result
from slime_router.conformance.gateways import Agentcore, Miles, OpenAI, Rllm, SlimeRouter
from slime_router.conformance.worker import Plan, ScriptedWorker
from slime_router.tokens.tokenizer import Tokenizer

ADAPTERS = ("slime-router", "miles", "rllm", "agentcore", "openai")
_BY_HTTP: Mapping[str, Callable[[Http], Adapter]] = {
    "slime-router": SlimeRouter,
    "miles": Miles,
    "rllm": Rllm,
    "agentcore": Agentcore,
}
READY_POLL_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How a gateway did."""

    url: str
    adapter: str
    results: tuple[Result, ...]

    @property
    def is_exact(self) -> bool:
        """Whether it passed every case."""
        return all(result.outcome == "pass" for result in self.results)


async def examine(
    url: str,
    adapter: str,
    tokenizer: Tokenizer,
    *,
    ports: tuple[int, int] = (0, 0),
    headers: Mapping[str, str] | None = None,
    wait_s: float = 60.0,
    announce: Callable[[Sequence[str]], None] = lambda _: None,
) -> Report:
    """Puts the gateway at `url` through all cases.

    `announce` gets the URLs of the kit's workers, which the gateway must use, and no others.

    Raises:
        GatewayError: it answers no chat within `wait_s`.
        OSError: a worker cannot listen.
    """
    plan = Plan(tokenizer)
    async with AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(ScriptedWorker(tokenizer, plan, port=port))
            for port in ports
        ]
        announce([worker.url for worker in workers])
        http = await stack.enter_async_context(Http(url, headers or {}))
        chosen = _adapter(adapter, http, tokenizer)
        await _until_ready(http, chosen, wait_s)
        results = await Cases(http, chosen, plan, workers, tokenizer).run()
    return Report(url=url, adapter=adapter, results=tuple(results))


def _adapter(name: str, http: Http, tokenizer: Tokenizer) -> Adapter:
    return OpenAI(http, tokenizer) if name == "openai" else _BY_HTTP[name](http)


async def _until_ready(http: Http, adapter: Adapter, wait_s: float) -> None:
    """A gateway may have yet to find its workers."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait_s
    while True:
        try:
            await http.say(await adapter.open(), [{"role": "user", "content": "Hello?"}])
            return
        except GatewayError:
            if loop.time() > deadline:
                raise
        await asyncio.sleep(READY_POLL_S)


def report_text(report: Report) -> str:
    """The report as a table."""
    lines = [f"{report.url} ({report.adapter})", ""]
    width = max(len(result.name) for result in report.results)
    lines += [
        f"{result.name:<{width}}  {result.outcome:<5}  {'; '.join(result.details)}"
        for result in report.results
    ]
    return "\n".join(line.rstrip() for line in lines)
