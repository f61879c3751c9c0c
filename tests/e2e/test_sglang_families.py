"""Against a real SGLang server: a tiny model that speaks as Gemma 4 does, and as gpt-oss does.

The model is the demo's, with the control tokens of both families in its vocabulary, each in the
place of a token that is seldom used. Templates are the families' own. A grammar makes it call a
tool and answer; which of its tokens it says that in is its own choice.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from tokenizers import Tokenizer

from slime_router.client import Client, Session
from tests.chat_templates import template_text
from tests.e2e.conftest import routing
from tests.e2e.test_sglang_tools import ask, one_row, streamed_or_not, tool, user, with_results
from tests.families.catalogue import family
from tests.families.checkpoints import write_json
from tests.sglang.environment import checkpoint, prepare
from tests.sglang.recorder import RecordingProxy
from tests.sglang.server import SGLangServer

pytestmark = [pytest.mark.sglang, pytest.mark.tokenizers, pytest.mark.timeout(300)]

SURE = 100.0  # a bias that outweighs whatever a random model would say
HARMONY_CALL = (
    r"<\|channel\|>analysis<\|message\|>(Need it|Let me look)\.<\|end\|><\|start\|>assistant"
    r"<\|channel\|>commentary to=functions\.get_weather <\|constrain\|>json<\|message\|>"
    r'\{"city" :"(Paris|Oslo)"\}'
)
HARMONY_ANSWER = r"<\|channel\|>final<\|message\|>(Yes|No), it is sunny\."
GEMMA_CALL = r'<\|tool_call>call:get_weather\{city:<\|"\|>(Paris|Oslo)<\|"\|>\}<tool_call\|>'
GEMMA_ANSWER = r"(Yes|No), it is sunny\."


@dataclass(frozen=True)
class Style:
    """How a family speaks: grammars of what it says, and what it ends that with."""

    name: str
    call: str
    answer: str
    call_end: str
    answer_end: str
    thinks: bool


STYLES = {
    "gptoss": Style("gptoss", HARMONY_CALL, HARMONY_ANSWER, "<|call|>", "<|return|>", True),
    "gemma4_v5": Style("gemma4_v5", GEMMA_CALL, GEMMA_ANSWER, "<|tool_response>", "<turn|>", False),
}
ENDS = [end for style in STYLES.values() for end in (style.call_end, style.answer_end)]


def build(source: Path, directory: Path) -> None:
    """A copy of the demo's model in which the last tokens of its vocabulary are control tokens."""
    shutil.copytree(source, directory)
    controls = dict.fromkeys(token for name in STYLES for token in family(name).controls)
    path = directory / "tokenizer.json"
    words = json.loads(path.read_text(encoding="utf-8"))
    vocabulary: dict[str, int] = words["model"]["vocab"]
    seldom = sorted(vocabulary, key=vocabulary.__getitem__)[-len(controls) :]
    places = [vocabulary.pop(word) for word in seldom]
    words["model"]["merges"] = words["model"]["merges"][: -len(controls)]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        # A grammar knows those only that are no special tokens.
        {"id": place, "content": control, "special": control in ENDS, **flags}
        for place, control in zip(places, controls, strict=True)
    ]
    words["added_tokens"] = sorted([*words["added_tokens"], *added], key=lambda each: each["id"])
    write_json(path, words)
    ids = dict(zip(controls, places, strict=True))
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((directory / name).read_text(encoding="utf-8"))
        write_json(directory / name, {**settings, "eos_token_id": [ids[end] for end in ENDS]})
    settings = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings |= {"bos_token": "<bos>", "eos_token": ENDS[0]}
    write_json(directory / "tokenizer_config.json", settings)


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[SGLangServer]:
    """One for both families."""
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    server = SGLangServer()
    server.url = ""  # one that runs already serves another model
    with capture.global_and_fixture_disabled():
        prepare()
        server.checkpoint = tmp_path_factory.mktemp("families") / "model"
        build(checkpoint(), server.checkpoint)
        server.__enter__()
    yield server
    server.__exit__(None, None, None)


@pytest.fixture(scope="module")
def proxy(server: SGLangServer) -> Iterator[RecordingProxy]:
    with RecordingProxy(server.url) as proxy:
        yield proxy


@pytest.fixture(scope="module", params=STYLES)
def style(request: pytest.FixtureRequest) -> Style:
    return STYLES[request.param]


@pytest.fixture(scope="module")
def url(
    style: Style,
    server: SGLangServer,
    proxy: RecordingProxy,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """A router that finds the formats by itself."""
    template = tmp_path_factory.mktemp("template") / f"{style.name}.jinja"
    template.write_text(template_text(style.name), encoding="utf-8")
    with routing(proxy, server.checkpoint, "--chat-template", str(template)) as url:
        yield url


@pytest.fixture
def session(url: str, proxy: RecordingProxy) -> Iterator[Session]:
    proxy.clear()
    with Client(url).open_session() as session:
        yield session


@pytest.fixture
def agent(session: Session) -> Iterator[OpenAI]:
    with OpenAI(base_url=session.base_url, api_key="none", timeout=60, max_retries=0) as client:
        yield client


@streamed_or_not
def test_a_call_its_result_and_a_question_are_one_trajectory(
    session, agent, proxy, server, style, stream
):
    tokenizer = Tokenizer.from_file(str(server.checkpoint / "tokenizer.json"))
    controls = [str(tokenizer.token_to_id(each)) for each in family(style.name).controls]

    def say(messages: list[Any], regex: str, end: str) -> Any:
        """A reply that follows the grammar, with control tokens as tokens, and ends with `end`."""
        ends = {str(tokenizer.token_to_id(each)): -SURE for each in ENDS}
        bias = {**dict.fromkeys(controls, SURE / 2), **ends, str(tokenizer.token_to_id(end)): SURE}
        fields = {"tools": [tool("get_weather", description="The weather")], "logit_bias": bias}
        reply = ask(agent, messages, stream=stream, extra_body={"regex": regex}, **fields)
        assert proxy.exchanges[-1].items()[-1]["output_ids"][-1] == tokenizer.token_to_id(end)
        return reply.choices[0]

    messages = [user("What is the weather?")]
    choice = say(messages, style.call, style.call_end)
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert (call.function.name, not choice.message.content) == ("get_weather", True)
    assert json.loads(call.function.arguments)["city"] in {"Paris", "Oslo"}
    if style.thinks:
        assert choice.message.reasoning_content in {"Need it.", "Let me look."}
    messages = with_results(messages, choice.message)
    choice = say(messages, style.answer, style.answer_end)
    assert choice.message.content in {"Yes, it is sunny.", "No, it is sunny."}
    messages += [{"role": "assistant", "content": choice.message.content}, user("Are you sure?")]
    choice = say(messages, style.answer, style.answer_end)
    generations = one_row(session, proxy)
    assert len(generations) == 3
    for earlier, later, text in zip(
        generations, generations[1:], ("Sun.", "Are you sure?"), strict=False
    ):
        suffix = later.prompt[len(earlier.prompt) + len(earlier.output) :]
        assert text in tokenizer.decode(suffix, skip_special_tokens=False)
    text = tokenizer.decode(generations[0].output, skip_special_tokens=False)
    assert generations[0].output != tokenizer.encode(text, add_special_tokens=False).ids
