"""The cases: what an agent says, what the workers sample, and what must come back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, Literal, TypeAlias

from slime_router.checkup.split import odd_split
from slime_router.conformance.adapter import Adapter, GatewayError, Http
from slime_router.conformance.judge import find_drift, find_faults
from slime_router.conformance.worker import Exchange, Plan, ScriptedWorker
from slime_router.tokens.encoder import After
from slime_router.tokens.tokenizer import Tokenizer

Outcome: TypeAlias = Literal["pass", "fail", "error"]

FIRST = "The answer depends on several conditions, however simple they sound."
SECOND = "Certainly, another explanation follows from these observations."
THIRD = "Otherwise, everything remains exactly as described before."


@dataclass(frozen=True, slots=True)
class Result:
    """How a case went; `details` says why it is not `pass`."""

    name: str
    outcome: Outcome
    details: tuple[str, ...] = ()


class Cases:
    """All cases, against one gateway."""

    def __init__(
        self,
        http: Http,
        adapter: Adapter,
        plan: Plan,
        workers: Sequence[ScriptedWorker],
        tokenizer: Tokenizer,
    ) -> None:
        self._http = http
        self._adapter = adapter
        self._plan = plan
        self._workers = workers
        self._tokenizer = tokenizer

    async def run(self) -> list[Result]:
        """Each case once."""
        cases: dict[str, Callable[[], Awaitable[list[str]]]] = {
            "drift": self.drift,
            "twin": self.twin,
            "mask": self.mask,
            "kill": self.kill,
            "train once": self.train_once,
        }
        return [await self._result(name, case) for name, case in cases.items()]

    async def _result(self, name: str, case: Callable[[], Awaitable[list[str]]]) -> Result:
        try:
            faults = await case()
        except GatewayError as exc:
            return Result(name, "error", (str(exc),))
        finally:
            for worker in self._workers:
                await worker.revive()
        return Result(name, "fail" if faults else "pass", tuple(faults))

    async def drift(self) -> list[str]:
        """Each prompt begins with all that was held before, as it was sampled."""
        self._plan.begin("case drift", *map(self._odd, (FIRST, SECOND, THIRD)))
        chat = await self._adapter.open()
        messages: list[dict[str, Any]] = [_user("case drift: what then?")]
        for question in ("Why?", "And otherwise?", None):
            reply = await self._http.say(chat, messages)
            messages += [{"role": "assistant", "content": reply}]
            messages += [_user(question)] if question else []
        return find_drift(self._plan.exchanges)

    async def twin(self) -> list[str]:
        """Two agents hear the same words, sampled as different tokens: each has its own."""
        self._plan.begin("case twin", self._odd(FIRST), self._plain(FIRST))
        chats = [await self._adapter.open() for _ in range(2)]
        faults = []
        for chat in chats:
            await self._http.say(chat, [_user("case twin: what then?")])
        for chat, exchange in zip(chats, self._plan.exchanges, strict=False):
            faults += find_faults(await self._adapter.rows(chat), [exchange])
        return faults

    async def mask(self) -> list[str]:
        """Of three turns just what was sampled is trained, with its log-probabilities."""
        self._plan.begin("case mask", *map(self._odd, (FIRST, SECOND)), self._plain(THIRD))
        chat = await self._adapter.open()
        messages = [{"role": "system", "content": "Be brief."}, _user("case mask: what then?")]
        for question in ("Why?", "And otherwise?", None):
            reply = await self._http.say(chat, messages)
            messages += [{"role": "assistant", "content": reply}]
            messages += [_user(question)] if question else []
        return find_faults(await self._adapter.rows(chat), self._plan.exchanges)

    async def kill(self) -> list[str]:
        """A worker dies in the middle of a reply: the client gets one, and it is handed over."""
        self._plan.begin("case kill", self._odd(FIRST), kills_first=True)
        chat = await self._adapter.open()
        reply = await self._http.say(chat, [_user("case kill: what then?")])
        faults = find_faults(await self._adapter.rows(chat), self._alive())
        return faults + ([] if reply == FIRST else ["the reply is not the one that was sampled"])

    def _alive(self) -> list[Exchange]:
        """The exchanges; of one that was cut, the tokens that the next one goes on from."""
        found = []
        for exchange, after in zip_longest(self._plan.exchanges, self._plan.exchanges[1:]):
            kept = len(exchange.ids)
            if exchange.was_cut:
                kept = 0 if after is None else max(len(after.prompt) - len(exchange.prompt), 0)
            ids, logprobs = exchange.ids[:kept], exchange.logprobs[:kept]
            found.append(replace(exchange, ids=ids, logprobs=logprobs))
        return found

    async def train_once(self) -> list[str]:
        """Two ways on from one reply, and a question asked twice: each token is trained once."""
        self._plan.begin("case once", *map(self._odd, (FIRST, SECOND, THIRD)))
        chat = await self._adapter.open()
        messages: list[dict[str, Any]] = [_user("case once: what then?")]
        first = await self._http.say(chat, messages)
        for question in ("Why?", "And otherwise?"):
            turns = [*messages, {"role": "assistant", "content": first}, _user(question)]
            await self._http.say(chat, turns)
        return find_faults(await self._adapter.rows(chat), self._plan.exchanges)

    def _odd(self, text: str) -> list[int]:
        """The text in tokens that no tokenizer would choose, and the end of a reply."""
        return [*odd_split(self._tokenizer, text, After.CONTROL), self._end]

    def _plain(self, text: str) -> list[int]:
        return [*self._tokenizer.encode(text, After.CONTROL).tolist(), self._end]

    @property
    def _end(self) -> int:
        return min(self._tokenizer.eos_ids)


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}
