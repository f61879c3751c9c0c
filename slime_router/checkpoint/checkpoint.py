"""What a checkpoint holds: which vocabulary it has, and what renders its conversations.

The only module that makes tokenizers of `transformers`. Chosen by the files that are there:

* `tokenizer.json`, or files that `transformers` makes one of: the fast tokenizer;
* else `tekken.json`: Mistral's vocabulary and format (`tekken.py`);
* else `tiktoken.model` or another file of that form (`tiktoken_file.py`).

Conversations are rendered by the Jinja template, or, for models of which SGLang does so, by the
Python code that defines their format (`python_formats.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from slime_router.checkpoint import python_formats as encoders
from slime_router.checkpoint import tiktoken_file
from slime_router.checkpoint.byte_bpe import prove
from slime_router.checkpoint.files import CheckpointFiles, default_template, without_torch_advice
from slime_router.checkpoint.model_config import read_config
from slime_router.checkpoint.tekken import FILENAME as TEKKEN
from slime_router.checkpoint.tekken import Tekken
from slime_router.configured_file import configured_text
from slime_router.errors import BadRequest, SetupError, one_line
from slime_router.template.renderer import JinjaRenderer
from slime_router.tokens.model import Model, ModelConfig, Renderer
from slime_router.tokens.tokenizer import Tokenizer
from slime_router.types import TemplateOptions

FAST = "tokenizer.json"
_VOCABULARIES = ("tokenizer.*", "vocab*", "*.model", "*.tiktoken")  # that transformers may read
_NAMED_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True, slots=True)
class LoadedVocabulary:
    """A fast tokenizer, whatever file it was made of.

    `hf` is one of `transformers`, with a backend of the library `tokenizers`. `chats` renders
    conversations with a template; it is another one where the checkpoint brings code for that.
    """

    source: str  # the file's name
    hf: Any
    chats: Any
    chat_template: str | None
    renderer: Renderer | None = None  # where the vocabulary comes with its own format
    takes_media: bool = False


def load_tokenizer(
    path_or_id: str,
    *,
    trust_remote_code: bool = False,
    chat_template: str | None = None,
    tool_call_parser: str | None = None,
) -> Tokenizer:
    """Load a checkpoint's tokenizer. Arguments as for `load_checkpoint`.

    Raises:
        SetupError: One line that names the checkpoint or the template, and the reason.
    """
    tokenizer = Tokenizer(
        load_checkpoint(
            path_or_id,
            trust_remote_code=trust_remote_code,
            chat_template=chat_template,
            tool_call_parser=tool_call_parser,
        )
    )
    # Some releases of `transformers` build the wrong tokenizer for a checkpoint that has no
    # config.json; it loses all spaces.
    if " " not in tokenizer.decode(tokenizer.encode("Hello world"), skip_special_tokens=False):
        raise SetupError(f"{path_or_id}: the tokenizer loses spaces; is config.json missing?")
    return tokenizer


def load_checkpoint(
    path_or_id: str,
    *,
    trust_remote_code: bool = False,
    chat_template: str | None = None,
    tool_call_parser: str | None = None,
) -> Model:
    """Find out what a checkpoint holds, and load it.

    Args:
        path_or_id: A directory, or a repository of the Hugging Face hub.
        trust_remote_code: Run the checkpoint's own Python code where it has some.
        chat_template: Used instead of the checkpoint's: a file's path, the text itself, or a name
            that `python_formats.NAMED` knows.
        tool_call_parser: SGLang takes a model's Python format also where its parser is asked for.

    Raises:
        SetupError: One line that names the checkpoint or the template, and the reason.
    """
    given = _given_renderer(chat_template)
    try:
        files = CheckpointFiles(path_or_id)
        config = read_config(files)
        vocabulary = _load_vocabulary(files, config, trust_remote_code, given is None)
        if given is None:
            renderer = _own_renderer(vocabulary, config, tool_call_parser)
        else:
            renderer = given(vocabulary)
    except SetupError as exc:
        raise SetupError(f"{path_or_id}: {exc.message}") from exc
    if renderer is not None:
        _check(renderer, chat_template or path_or_id)
    return Model(
        name=path_or_id,
        hf=vocabulary.hf,
        renderer=renderer,
        config=config,
        takes_media=vocabulary.takes_media,
    )


def _check(renderer: Renderer, name: str) -> None:
    """SetupError that begins with `name` where it cannot render at all."""
    try:
        if isinstance(renderer, JinjaRenderer):
            renderer.compile()
        else:
            renderer.render([{"role": "user", "content": "Hello"}], TemplateOptions(), None)
    except (BadRequest, SetupError) as exc:
        raise SetupError(f"{name}: {exc.message}") from exc


def _given_renderer(chat_template: str | None) -> Callable[[LoadedVocabulary], Renderer] | None:
    """What `--chat-template` asks for: a format by name, or a template."""
    if not chat_template:
        return None
    if chat_template in encoders.NAMED:
        name = chat_template
        return lambda found: encoders.named_renderer(name, found.hf.backend_tokenizer)
    template = _read_template(chat_template)
    return lambda found: JinjaRenderer(found.chats, template)


def _load_vocabulary(
    files: CheckpointFiles, config: ModelConfig, trusts: bool, renders_itself: bool
) -> LoadedVocabulary:
    if files.find(FAST) is None:
        if (tekken := files.find(TEKKEN)) is not None:
            return _load_tekken(tekken)
        if (ranks := _ranks_file(files)) is not None:
            return _load_tiktoken(files, ranks, config, trusts, renders_itself)
    hf = _load_hf(files.name, trusts)
    if not hf.is_fast:
        raise SetupError("has no fast tokenizer (tokenizer.json), nor a file that becomes one")
    return LoadedVocabulary(FAST, hf, hf, default_template(hf.chat_template))


def _own_renderer(
    vocabulary: LoadedVocabulary, config: ModelConfig, tool_call_parser: str | None
) -> Renderer | None:
    """What renders the checkpoint's conversations by default."""
    if vocabulary.renderer is not None:
        return vocabulary.renderer
    template = vocabulary.chat_template
    encoding = encoders.encoding_of(config, template, tool_call_parser)
    if encoding == encoders.REMOTE:
        if type(vocabulary.chats).__module__.startswith("transformers."):
            raise SetupError("its own Python code renders chats: start with --trust-remote-code")
        return encoders.remote_renderer(vocabulary.chats, vocabulary.hf.backend_tokenizer)
    if encoding is not None:
        return encoders.encoding_renderer(encoding, vocabulary.hf.backend_tokenizer)
    return None if template is None else JinjaRenderer(vocabulary.chats, template)


def _load_tekken(path: Path) -> LoadedVocabulary:
    tekken = Tekken(path)
    hf = _wrap(tekken.backend, tekken.special_tokens)
    return LoadedVocabulary(
        TEKKEN, hf, hf, None, renderer=tekken.renderer(), takes_media=tekken.takes_media
    )


def _ranks_file(files: CheckpointFiles) -> Path | None:
    """A vocabulary in tiktoken's form, by whatever name; `transformers` would guess its pattern."""
    named = files.find(tiktoken_file.FILENAME)
    if named is not None:
        return named
    others = files.find_ending(".tiktoken"), files.find("tokenizer.model")
    return next((each for each in others if each and tiktoken_file.is_ranks(each)), None)


def _load_tiktoken(
    files: CheckpointFiles, path: Path, config: ModelConfig, trusts: bool, renders_itself: bool
) -> LoadedVocabulary:
    backend = tiktoken_file.load_tiktoken(files, path, config)
    code, template = tiktoken_file.read_code(files), files.chat_template()
    hf = chats = _wrap(backend, _named_tokens(files.json("tokenizer_config.json")))
    if code.filename and trusts:
        chats = _load_hf(files.name, trusts)
        prove(backend, tiktoken_file.read_ranks(path), (), _native(chats))
        template = default_template(chats.chat_template) or template
    elif code.renders and renders_itself:
        raise SetupError(f"{code.filename} renders chats: start with --trust-remote-code")
    return LoadedVocabulary(path.name, hf, chats, template)


def _native(hf: Any) -> Callable[[str], Sequence[int]]:
    def encode(text: str) -> Sequence[int]:
        ids: Sequence[int] = hf.encode(text, add_special_tokens=False)
        return ids

    return encode


def _named_tokens(tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens that have a name in `transformers`: as text, or as an object with one."""
    found = {name: tokenizer_config.get(name) for name in _NAMED_TOKENS}
    texts = {
        name: value.get("content") if isinstance(value, Mapping) else value
        for name, value in found.items()
    }
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _wrap(backend: tokenizers.Tokenizer, named: Mapping[str, str]) -> Any:
    with without_torch_advice():
        from transformers import PreTrainedTokenizerFast
    fast: Any = PreTrainedTokenizerFast  # whose constructor is not typed
    return fast(tokenizer_object=backend, **named)


def _load_hf(path_or_id: str, trusts: bool) -> Any:
    if not (trusts or _may_have_vocabulary(path_or_id)):
        # For some models transformers makes a tokenizer anyway, without tokens.
        raise SetupError(f"the directory has no vocabulary, such as {FAST}")
    with without_torch_advice():
        from transformers import (
            AutoTokenizer,
        )  # takes seconds: only those who load a tokenizer wait
    try:
        return AutoTokenizer.from_pretrained(path_or_id, trust_remote_code=trusts)
    except Exception as exc:  # broken files, no network, or whatever the checkpoint's code raises
        raise SetupError(f"cannot load the tokenizer: {one_line(exc)}") from exc


def _may_have_vocabulary(path_or_id: str) -> bool:
    """False for a directory without any; of a repository nobody knows."""
    directory = Path(path_or_id)
    return not directory.is_dir() or any(any(directory.glob(name)) for name in _VOCABULARIES)


def _read_template(path_or_text: str) -> str:
    if "{" in path_or_text:  # every template has a tag; a path has none
        return path_or_text
    try:
        return configured_text(Path(path_or_text))
    except (OSError, UnicodeError) as exc:
        reason = getattr(exc, "strerror", None) or str(exc)
        raise SetupError(f"{path_or_text}: cannot read the chat template: {reason}") from exc
