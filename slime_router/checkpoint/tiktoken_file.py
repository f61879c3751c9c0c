"""Vocabularies in tiktoken's own file: Kimi's `tiktoken.model`, and others of that form.

The file holds only ranks. The pattern by which a text is split, and the control tokens, are in
the checkpoint's Python code and its configuration. The code is read, never run: the pattern is
found where it is handed to `tiktoken.Encoding`, and it must be a constant.
"""

from __future__ import annotations

import ast
import base64
import binascii
import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from slime_router.checkpoint.byte_bpe import Special, build_backend, prove
from slime_router.checkpoint.files import CheckpointFiles, bad_value, object_in
from slime_router.errors import SetupError, one_line
from slime_router.tokens.model import ModelConfig

FILENAME = "tiktoken.model"
_TOKENIZER = "tokenizer_config.json"
PACKAGE_HINT = "tiktoken.model needs the package tiktoken: pip install 'slime-router[tiktoken]'"

# What Kimi's models split a text by (`pat_str` of their tokenization_kimi.py): used for them where
# the checkpoint comes without that file.
KIMI_PATTERN = "|".join(
    (
        r"[\p{Han}]+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
        r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
        r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
KIMI_RESERVED = 256
MAX_ID = 2**31 - 1  # ids are int32

_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+")


@dataclass(frozen=True, slots=True)
class Code:
    """What a checkpoint's tokenizer code defines, as far as it does so in constants."""

    filename: str = ""
    pattern: str | None = None
    reserved: int = 0  # ids after the ordinary tokens, for control tokens without a name
    renders: bool = False  # conversations, by its own method


def load_tiktoken(files: CheckpointFiles, path: Path, config: ModelConfig) -> tokenizers.Tokenizer:
    """The vocabulary in tiktoken's file at `path`, proved against the package `tiktoken`.

    Raises:
        SetupError: What is missing, or cannot be exact.
    """
    code = read_code(files)
    ranks = read_ranks(path)
    if code.pattern is None and not code.filename and _is_kimi(config):
        code = Code(pattern=KIMI_PATTERN, reserved=KIMI_RESERVED)
    if code.pattern is None:
        where = f"{code.filename} builds it" if code.filename else "there is no tokenizer code"
        raise SetupError(f"{path.name} without a constant split pattern ({where})")
    added = object_in(files.json(_TOKENIZER), "added_tokens_decoder", _TOKENIZER)
    specials = _specials(len(ranks), added, code.reserved, config.vocab_size)
    if not specials:
        raise SetupError(f"{path.name} without control tokens in {_TOKENIZER}")
    backend = build_backend(ranks, code.pattern, specials)
    prove(backend, ranks, specials, _native(ranks, code.pattern, specials))
    return backend


def is_ranks(path: Path) -> bool:
    """Whether a file is a list of tokens and ranks, whatever its name."""
    try:
        with path.open("rb") as file:
            return _LINE.fullmatch(file.readline(1000).strip()) is not None
    except OSError as exc:
        raise SetupError(f"bad {path.name}: {exc.strerror}") from exc


def read_ranks(path: Path) -> dict[bytes, int]:
    """The rank of each ordinary token; they count from 0 without gaps."""
    ranks: dict[bytes, int] = {}
    try:
        for line in path.read_bytes().splitlines():
            if line:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
    except (OSError, ValueError, binascii.Error) as exc:
        raise SetupError(f"bad {path.name}: {exc}") from exc
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise SetupError(f"bad {path.name}: the ranks do not count from 0")
    return ranks


def read_code(files: CheckpointFiles) -> Code:
    """What is defined by the code that `tokenizer_config.json` names for the tokenizer."""
    auto_map = object_in(files.json(_TOKENIZER), "auto_map", _TOKENIZER)
    handed = auto_map.get("AutoTokenizer")
    named = next((each for each in _listed(handed) if isinstance(each, str)), None)
    if named is None:
        return Code()
    module, _, class_name = named.rpartition("--")[2].partition(".")
    filename = f"{module}.py"
    source = files.text(filename)
    if source is None:
        return Code()
    try:
        return _read_module(ast.parse(source), class_name, filename)
    except (SyntaxError, ValueError, RecursionError) as exc:
        raise SetupError(f"bad {filename}: {exc}") from exc


def _read_module(tree: ast.Module, class_name: str, filename: str) -> Code:
    classes = [
        each for each in tree.body if isinstance(each, ast.ClassDef) and each.name == class_name
    ]
    constants = _constants(tree.body)
    for each in classes:
        constants |= _constants(each.body)
    methods = {
        each.name for owner in classes for each in owner.body if isinstance(each, ast.FunctionDef)
    }
    handed = [
        keyword.value
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        for keyword in call.keywords
        if keyword.arg == "pat_str"
    ]
    patterns = {_value(each, constants) for each in handed}
    pattern = patterns.pop() if len(patterns) == 1 else None
    reserved = constants.get("num_reserved_special_tokens")
    return Code(
        filename=filename,
        pattern=pattern if isinstance(pattern, str) else None,
        reserved=reserved if isinstance(reserved, int) else 0,
        renders="apply_chat_template" in methods,
    )


def _constants(body: Sequence[ast.stmt]) -> dict[str, str | int]:
    """Names that are given a constant value, in order."""
    found: dict[str, str | int] = {}
    for statement in body:
        if not isinstance(statement, ast.Assign | ast.AnnAssign) or statement.value is None:
            continue
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        value = _value(statement.value, found)
        if value is not None:
            found |= {target.id: value for target in targets if isinstance(target, ast.Name)}
    return found


def _value(node: ast.expr, known: Mapping[str, str | int]) -> str | int | None:
    """The constant that an expression is: a literal, a name, a sum, or `"|".join([...])`."""
    match node:
        case ast.Constant(value=str() | int() as value):
            return value
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return known.get(name)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            parts = [_value(left, known), _value(right, known)]
        case ast.Call(
            func=ast.Attribute(value=ast.Constant(value=str() as glue), attr="join"),
            args=[ast.List(elts=elements) | ast.Tuple(elts=elements)],
        ):
            parts = [_value(element, known) for element in elements]
            texts = [part for part in parts if isinstance(part, str)]
            return glue.join(texts) if len(texts) == len(parts) else None
        case _:
            return None
    return "".join(map(str, parts)) if all(isinstance(part, str) for part in parts) else None


def _specials(
    first: int, added: Mapping[str, Any], reserved: int, vocab_size: int
) -> list[Special]:
    """The control tokens: those with a name, and the unnamed ones that the code reserves.

    Only ids that the model has: Kimi's code reserves two more than there are.
    """
    try:
        named = {
            int(number): Special(int(number), token["content"], bool(token.get("special", True)))
            for number, token in added.items()
            if int(number) >= first
        }
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise SetupError(f"bad {_TOKENIZER}: added_tokens_decoder: {one_line(exc)}") from exc
    for special in named.values():
        if not isinstance(special.literal, str):
            raise bad_value(_TOKENIZER, "a token's content", "a text", special.literal)
        if special.id > MAX_ID:
            raise bad_value(_TOKENIZER, "a key of added_tokens_decoder", "a token id", special.id)
    end = min(first + reserved + 2, vocab_size or first + reserved + 2)
    unnamed = range(first, end) if reserved else range(0)
    for token_id in unnamed:
        named.setdefault(token_id, Special(token_id, f"<|reserved_token_{token_id}|>"))
    return [named[token_id] for token_id in sorted(named)]


def _native(
    ranks: Mapping[bytes, int], pattern: str, specials: Sequence[Special]
) -> Callable[[str], list[int]]:
    try:
        tiktoken = importlib.import_module("tiktoken")
    except ImportError as exc:
        raise SetupError(PACKAGE_HINT) from exc
    try:
        encoding = tiktoken.Encoding(
            "checkpoint",
            pat_str=pattern,
            mergeable_ranks=dict(ranks),
            special_tokens={special.literal: special.id for special in specials},
        )
    except ValueError as exc:
        raise SetupError(f"bad split pattern: {exc}") from exc

    def encode(text: str) -> list[int]:
        ids: list[int] = encoding.encode(text, allowed_special="all")
        return ids

    return encode


def _is_kimi(config: ModelConfig) -> bool:
    names = (config.model_type, *config.architectures)
    return any(name.lower().startswith("kimi") for name in names)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
