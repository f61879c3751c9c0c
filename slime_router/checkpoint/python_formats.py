"""Chat formats that models come with as Python code instead of a template.

SGLang holds that code (DeepSeek V3.2, GLM-5.3) or the package of the model's maker does (DeepSeek
V4: `deepseek-recipe`); it is chosen and called as SGLang's own chat route does, so that a prompt is
what the worker itself would have made. Two differences are meant: tools are written as the client
wrote them, without the defaults of a schema, and text stands for the ids.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import tokenizers

from slime_router.checkpoint.sglang_entry import HOW_TO_INSTALL, import_from_sglang
from slime_router.errors import BadRequest, SetupError, one_line
from slime_router.json_text import escaped_halves
from slime_router.tokens.model import ModelConfig, Renderer
from slime_router.types import Message, TemplateOptions

# Templates that `--chat-template` knows by name, as SGLang does, and the functions that they are.
NAMED = {"glm-5.3": "render_glm53", "glm-5.3-flash": "render_glm53_flash"}

# Without these tokens a vocabulary is another family's: its ids would be letters.
_GLM_TOKENS = ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
_DEEPSEEK_TOKENS = (
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
)

_NEEDS_SGLANG = f"chats need SGLang's Python encoder: {HOW_TO_INSTALL}"
_NEEDS_RECIPE = "chats need the package deepseek-recipe: pip install 'slime-router[deepseek]'"
_RECIPES = ("dsv4", "dsv41")
REMOTE = "kimi_k3"  # the encoding that is a method of the checkpoint's own tokenizer
_KIMI_EFFORTS = ("low", "high", "max")
_FIELDS = ("role", "content", "reasoning_content", "tool_calls", "tool_call_id", "tools")

_Encode = Callable[[list[Message], TemplateOptions], str]


def named_renderer(name: str, backend: tokenizers.Tokenizer) -> Renderer:
    """The format that `--chat-template` names.

    Raises:
        SetupError: SGLang is not installed, or the vocabulary is not of that family.
    """
    _check_tokens(backend, _GLM_TOKENS, name)
    try:
        function = getattr(import_from_sglang("parser.glm53_chat_template"), NAMED[name])
    except (ImportError, AttributeError) as exc:
        raise SetupError(f"{_NEEDS_SGLANG} ({exc})") from exc
    return PythonRenderer(_glm(function), source=f"SGLang's Python template {name}")


def encoding_of(
    config: ModelConfig, chat_template: str | None, tool_call_parser: str | None
) -> str | None:
    """SGLang's name of the Python encoding with which it serves such a checkpoint; None: Jinja.

    A checkpoint with a template of a family that has none of these is not asked about: SGLang need
    not be installed for it.

    Raises:
        SetupError: It may be one, and SGLang, which knows, is not installed.
    """
    is_deepseek = "Deepseek" in str(config.architectures)
    is_asked_for = (tool_call_parser or "").startswith(("deepseek", "kimi"))
    if chat_template is not None and not is_deepseek and not is_asked_for:
        return None
    try:
        chooser = import_from_sglang("entrypoints.openai.chat_encoding")
    except ImportError as exc:
        if is_deepseek and chat_template is None:
            raise SetupError(f"{_NEEDS_SGLANG} ({exc})") from exc
        return None
    found = SimpleNamespace(architectures=list(config.architectures), model_type=config.model_type)
    encoding: str | None = chooser.resolve_chat_encoding_spec(
        hf_config=found,
        tokenizer=SimpleNamespace(chat_template=chat_template),
        tool_call_parser=tool_call_parser,
    )
    return encoding


def encoding_renderer(encoding: str, backend: tokenizers.Tokenizer) -> Renderer:
    """The renderer of one of SGLang's encodings.

    Raises:
        SetupError: The router does not know it, or the vocabulary or a package lacks something.
    """
    if encoding == "dsv32":
        _check_tokens(backend, _DEEPSEEK_TOKENS, "DeepSeek-V3.2")
        module = import_from_sglang("entrypoints.openai.encoding_dsv32")
        return PythonRenderer(
            _deepseek_v32(module.encode_messages),
            source="SGLang's Python encoder encoding_dsv32",
            has_developer_role=True,
        )
    if encoding in _RECIPES:
        return _recipe_renderer(encoding, backend)
    raise SetupError(
        f"SGLang renders its chats by {encoding!r}, which the router cannot do as text"
    )


def remote_renderer(hf: Any, backend: tokenizers.Tokenizer) -> Renderer:
    """The format that a tokenizer with Python code of its own has (Kimi K3).

    Raises:
        SetupError: Its text does not read as the ids that it gives itself.
    """

    def encode(messages: list[Message], options: TemplateOptions, tokenize: bool = False) -> Any:
        kwargs = dict(options.kwargs)
        effort = kwargs.pop("reasoning_effort", None)
        if effort in _KIMI_EFFORTS:
            kwargs.setdefault("thinking_effort", effort)
        return hf.apply_chat_template(
            messages,
            tools=list(options.tools) or None,
            tokenize=tokenize,
            add_generation_prompt=options.add_generation_prompt or options.continue_final_message,
            return_dict=False,
            **kwargs,
        )

    hello = [{"role": "user", "content": "Hello"}]
    try:
        text, ids = encode(hello, TemplateOptions()), encode(hello, TemplateOptions(), True)
        spelled = backend.encode(text, add_special_tokens=False).ids
    except Exception as exc:  # the checkpoint's code: it may raise anything
        raise SetupError(f"its own code cannot render a chat: {one_line(exc)}") from exc
    if spelled != list(ids):
        raise SetupError("its own code renders token ids that no text stands for")
    return PythonRenderer(encode, source=f"the checkpoint's own {type(hf).__name__}")


class PythonRenderer:
    """One format that is a Python function. Never changes."""

    is_jinja = False

    def __init__(self, encode: _Encode, *, source: str, has_developer_role: bool = False) -> None:
        """`encode` may change the list that it is given, and may raise anything."""
        self._encode = encode
        self.source = source
        self.has_developer_role = has_developer_role

    def render(
        self,
        messages: Sequence[Message],
        options: TemplateOptions,
        date: datetime | None,  # noqa: ARG002  (the port's; these formats print none)
    ) -> str:
        """The text of `messages`; these formats know no date.

        A final message that is continued is printed as it is, after the header of its turn.

        Raises:
            BadRequest: The format refused the messages; in its own words.
        """
        continued = ""
        ready = [dict(message) for message in messages]
        if options.continue_final_message and ready and ready[-1]["role"] == "assistant":
            continued = str(ready.pop().get("content") or "")
        try:
            text = self._encode(ready, options) + continued
            text = escaped_halves(text)  # of a call's arguments: no tokenizer takes them
        except Exception as exc:  # it is a program: on a client's messages it may raise anything
            reason = f"The chat format cannot render these messages: {one_line(exc)}"
            raise BadRequest(reason, param="messages") from exc
        return text


def _check_tokens(backend: tokenizers.Tokenizer, literals: Sequence[str], name: str) -> None:
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    if missing := [literal for literal in literals if literal not in known]:
        raise SetupError(f"no vocabulary for {name}: it has no token {missing[0]!r}")


def _thinks(options: TemplateOptions) -> bool:
    return bool(options.kwargs.get("thinking"))


def _glm(function: Callable[..., str]) -> _Encode:
    def encode(messages: list[Message], options: TemplateOptions) -> str:
        return function(
            messages,
            tools=list(options.tools) or None,
            add_generation_prompt=options.add_generation_prompt or options.continue_final_message,
            **options.kwargs,
        )

    return encode


def _deepseek_v32(function: Callable[..., str]) -> _Encode:
    def encode(messages: list[Message], options: TemplateOptions) -> str:
        if not messages or messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": ""})  # it holds the tools
        if options.tools:
            messages[0]["tools"] = list(options.tools)
        return function(messages, thinking_mode="thinking" if _thinks(options) else "chat")

    return encode


def _recipe_renderer(encoding: str, backend: tokenizers.Tokenizer) -> Renderer:
    try:
        module = import_from_sglang("parser.deepseek_recipe_renderer")
        package = module.load_deepseek_recipe()
    except ImportError as exc:
        raise SetupError(f"{_NEEDS_RECIPE} ({one_line(exc)})") from exc
    try:
        recipe = module.DeepSeekRecipe(encoding, backend)
        # SGLang sends these ids; here the text must read as them.
        ids = recipe.encode({"messages": [{"role": "user", "content": "Hi"}], "thinking": True})
    except Exception as exc:  # what the package says of a vocabulary that is not DeepSeek's
        raise SetupError(
            f"no vocabulary for {module.MODEL_NAMES[encoding]}: {one_line(exc)}"
        ) from exc
    for owner, name in ((recipe, "_options"), (recipe, "_encoding"), (module, "_error_message")):
        if not hasattr(owner, name):
            raise SetupError(f"this version of deepseek-recipe or SGLang does not fit: no {name}")
    renderer = PythonRenderer(
        _deepseek_recipe(module, package, recipe, backend),
        source=f"deepseek-recipe {package.__version__}, {module.MODEL_NAMES[encoding]}",
    )
    hello = TemplateOptions(kwargs={"thinking": True})
    text = renderer.render([{"role": "user", "content": "Hi"}], hello, None)
    if backend.encode(text, add_special_tokens=False).ids != ids:
        raise SetupError("deepseek-recipe and the vocabulary read its prompts differently")
    return renderer


def _deepseek_recipe(
    module: Any, package: Any, recipe: Any, backend: tokenizers.Tokenizer
) -> _Encode:
    added = sorted(token.content for token in backend.get_added_tokens_decoder().values())
    literals = re.compile("|".join(map(re.escape, reversed(added))))

    def encode(messages: list[Message], options: TemplateOptions) -> str:
        known = [{name: each[name] for name in _FIELDS if name in each} for each in messages]
        body: dict[str, Any] = {"messages": known, "thinking": _thinks(options)}
        if options.tools:
            body["tools"] = list(options.tools)
        effort = options.kwargs.get("reasoning_effort")
        if effort not in (None, "none"):
            body["reasoning_effort"] = effort
        request = module.pre_normalize(body)
        request["model"] = recipe.model
        try:
            converted = package.ChatCompletionRequest(request).convert(recipe._options)
        except package.ConversionError as exc:
            raise ValueError(module._error_message(exc.body)) from exc
        rendered = recipe._encoding.render_conversation(converted.conversation)
        text: str = rendered.prompt
        # A control token spelled in a message is ordinary letters to the package, and a control
        # token when the text is encoded.
        special = {start for start, _ in rendered.special_ranges}
        if strange := [m for m in literals.finditer(text) if m.start() not in special]:
            raise ValueError(f"a message spells the control token {strange[0].group()!r}")
        return text

    return encode
