"""What the router is for, in one minute: `make demo`.

A real worker, the router as a user starts it, and a chat of three turns with the `openai`
package. A recording proxy between router and worker is the witness: what the trainer is handed at
the end is compared, token by token, with what the worker returned when it sampled.
"""

from __future__ import annotations

import json
import signal
import sys
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from openai import OpenAI
from tokenizers import Tokenizer

from tests.ports import HOST, free_port
from tests.sglang.child import Child, ChildFailed, say
from tests.sglang.environment import CACHE
from tests.sglang.recorder import Exchange, RecordingProxy
from tests.sglang.server import SGLangServer, answers

QUESTIONS = (
    "What is a radix tree?",
    "Show me one in Python.",
    "And how does it forget?",
)
STREAMED_TURN = 2
MAX_TOKENS = 24
ROUTER_TIMEOUT_S = 60.0
REPLY_TIMEOUT_S = 60.0
SHOWN_CHARS = 56
SHOWN_TOKENS = 4
RECEIPT_HEADER = "x-slime-receipt"

TITLE = """
Three turns through slime_router, with a real SGLang worker on this CPU; before the last one the
router is killed.
The model is tiny and its weights are random: its replies are gibberish, its tokens are real.
"""
TABLE_TITLE = """
What the trainer gets for this conversation (POST /retrieve_from_messages_template)
beside what the worker returned when it sampled:
"""
GOOD_END = """
Every sampled token reached the trainer as it was sampled, with its own logprob.
Had the replies been encoded again from their text, the trainer would have learned from
tokens that the model never chose: see the last column."""
BAD_END = "\nDIFFERENT: the trainer would get something else than the worker sampled."


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn: what the client saw, and what the witness saw."""

    reply: str
    receipt: dict[str, Any]
    prompt_ids: list[int]
    output_ids: list[int]
    logprobs: list[float]


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `with` blocks end
    try:
        is_identical = run()
    except ChildFailed as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    say(GOOD_END if is_identical else BAD_END)
    sys.exit(0 if is_identical else 1)


def run() -> bool:
    """Hold the conversation; True when everything that was kept is what was sampled."""
    say(TITLE)
    with ExitStack() as stack:
        worker = stack.enter_context(SGLangServer())
        proxy = stack.enter_context(RecordingProxy(worker.url))
        port = free_port()
        router_url = f"http://{HOST}:{port}"
        command = [sys.executable, "-m", "slime_router", "--hf-checkpoint", str(worker.checkpoint)]
        command += ["--worker-urls", proxy.url, "--port", str(port)]
        command += ["--journal", stack.enter_context(TemporaryDirectory(prefix="journal-"))]

        def started() -> Child:
            router = stack.enter_context(Child("router", command, log=CACHE / "router.log"))
            doing = f"starting on port {port}"
            router.wait_until(
                lambda: answers(f"{router_url}/readiness"), doing, timeout_s=ROUTER_TIMEOUT_S
            )
            return router

        router = started()

        def restart() -> None:
            say("\nThe router is killed (kill -9) and started again, with its journal.")
            router.kill()
            started()

        messages: list[dict[str, Any]] = []
        turns = talk(router_url, proxy, messages, restart)
        kept = post_json(f"{router_url}/retrieve_from_messages_template", {"messages": messages})
        tokenizer = Tokenizer.from_file(str(worker.checkpoint / "tokenizer.json"))
        return compare(turns, kept, tokenizer)


def talk(
    url: str, proxy: RecordingProxy, messages: list[dict[str, Any]], restart: Callable[[], None]
) -> list[Turn]:
    """Ask the questions one after another; `messages` grows as a client's history does.

    Before the last question the router is restarted.
    """
    turns: list[Turn] = []
    with OpenAI(
        base_url=f"{url}/v1", api_key="none", timeout=REPLY_TIMEOUT_S, max_retries=0
    ) as client:
        for number, question in enumerate(QUESTIONS, 1):
            if number == len(QUESTIONS):
                restart()
            messages.append({"role": "user", "content": question})
            proxy.clear()
            is_streamed = number == STREAMED_TURN
            reply, receipt = ask(client, messages, is_streamed)
            messages.append({"role": "assistant", "content": reply})
            turn = witnessed(reply, receipt, proxy.exchanges[-1])
            turns.append(turn)
            show(number, question, turn, is_streamed)
    return turns


def ask(client: OpenAI, messages: Any, is_streamed: bool) -> tuple[str, dict[str, Any]]:
    """The reply's text, and the router's receipt for it."""
    raw = client.chat.completions.with_raw_response.create(
        model="tiny", messages=messages, max_tokens=MAX_TOKENS, stream=is_streamed
    )
    receipt = json.loads(raw.headers[RECEIPT_HEADER])
    answer: Any = raw.parse()
    if not is_streamed:
        return answer.choices[0].message.content or "", receipt
    deltas = (chunk.choices[0].delta.content for chunk in answer if chunk.choices)
    return "".join(delta or "" for delta in deltas), receipt


def witnessed(reply: str, receipt: dict[str, Any], exchange: Exchange) -> Turn:
    """The turn with the ids and logprobs that went over the wire to and from the worker."""
    last = exchange.items()[-1]  # a stream's last item holds all that the ones before held
    return Turn(
        reply=reply,
        receipt=receipt,
        prompt_ids=exchange.asked()["input_ids"],
        output_ids=last["output_ids"],
        logprobs=[entry[0] for entry in last["meta_info"]["output_token_logprobs"]],
    )


def show(number: int, question: str, turn: Turn, is_streamed: bool) -> None:
    receipt = turn.receipt
    say(f"\nturn {number}   user     {question!r}{'   (streamed)' if is_streamed else ''}")
    say(f"         reply    {shortened(turn.reply)}")
    say(
        f"         receipt  {receipt['status']}: of {len(turn.prompt_ids)} prompt tokens "
        f"{receipt['reused']} sent again as they were, {receipt['encoded']} newly encoded"
    )
    say(f"         reason   {receipt['reason']}")


def compare(turns: list[Turn], kept: dict[str, Any], tokenizer: Tokenizer) -> bool:
    """Print the table; True when ids, logprobs and prompts are what went over the wire."""
    ids, logprobs = sampled(kept)
    say(TABLE_TITLE)
    say("turn   sampled   ids         logprobs    if its text were encoded again")
    checks = [len(ids) == sum(len(turn.output_ids) for turn in turns)]
    start = 0
    for number, turn in enumerate(turns, 1):
        end = start + len(turn.output_ids)
        is_same_ids = np.array_equal(ids[start:end], turn.output_ids)
        is_same_logprobs = np.array_equal(logprobs[start:end], turn.logprobs)
        checks += [is_same_ids, is_same_logprobs]
        say(
            f"{number:<7}{len(turn.output_ids):<10}{verdict(is_same_ids):<12}"
            f"{verdict(is_same_logprobs):<12}{encoded_again(turn.output_ids, tokenizer)}"
        )
        say(f"       worker    {tokens(turn.output_ids, turn.logprobs)}")
        say(f"       trainer   {tokens(ids[start:end], logprobs[start:end])}")
        start = end
    checks.append(all(continues(*neighbours) for neighbours in pairwise(turns)))
    say(f"\nEach prompt begins with all tokens of the turn before: {'yes' if checks[-1] else 'NO'}")
    return all(checks)


def continues(before: Turn, after: Turn) -> bool:
    held = before.prompt_ids + before.output_ids
    return after.prompt_ids[: len(held)] == held and after.receipt["reused"] == len(held)


def encoded_again(output_ids: list[int], tokenizer: Tokenizer) -> str:
    again = tokenizer.encode(tokenizer.decode(output_ids, skip_special_tokens=False)).ids
    return "the same tokens" if again == output_ids else f"{len(again)} tokens, not the same"


def sampled(kept: dict[str, Any]) -> tuple[Any, Any]:
    """Ids and logprobs where the loss mask is 1. Mask and logprobs stand at the row's end."""
    mask = np.asarray(kept["loss_mask"], bool)
    ids = np.asarray(kept["tokens"], np.int64)[len(kept["tokens"]) - len(mask) :]
    logprobs = np.asarray(kept["rollout_logp"], np.float64)[-len(mask) :]
    return ids[mask], logprobs[mask]


def tokens(ids: Sequence[int], logprobs: Sequence[float]) -> str:
    """The first few tokens, each with its logprob."""
    pairs = zip(ids[:SHOWN_TOKENS], logprobs[:SHOWN_TOKENS], strict=True)
    return "  ".join(f"{token_id:>5} {logprob:8.4f}" for token_id, logprob in pairs) + "  ..."


def verdict(is_same: bool) -> str:
    return "identical" if is_same else "DIFFERENT"


def shortened(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= SHOWN_CHARS else shown[: SHOWN_CHARS - 1] + "…"


def post_json(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=REPLY_TIMEOUT_S) as response:
        return json.load(response)


if __name__ == "__main__":
    main()
