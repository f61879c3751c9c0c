"""Bodies that go to a worker unread by any door: nothing in them may bring its process down.

Their fields are many and change with every version of SGLang. So it is not the fields that are
known here but what is dangerous: every list of numbers is taken for token ids, unless its name
says otherwise, and every `sampling_params` for what `/generate` takes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from slime_router.api.generate.request import check_sampling
from slime_router.api.request import wrong_type
from slime_router.api.token_ids import check_bias_keys, checked_ids
from slime_router.auth.caller import Caller
from slime_router.edge.allowances import MAX_DEPTH, Allowances
from slime_router.edge.lengths import check_containers
from slime_router.edge.owned_calls import own_fields
from slime_router.engine.wire.rids import passed_rid
from slime_router.errors import BadRequest
from slime_router.json_text import without_mark

_NO_IDS = frozenset(  # lists of numbers, one for each prompt of a batch, that are something else
    {
        "bootstrap_room",
        "bootstrap_port",
        "logprob_start_len",
        "top_logprobs_num",
        "priority",
        "embed_overrides",
        "query_embed_overrides",
        "item_embed_overrides",
        "input_embeds",
        "embedding",
        "context",  # of the last answer: old ids in Ollama's API, which SGLang ignores
    }
)
_IDS = ("_ids", "token_id", "score_extraction_token")  # how names of ids end
_NUMBER = re.compile(r"\s*[+-]?\d[\d_]*(\.0*)?\s*")
MAX_NUMBER_LEN = 40  # characters
_PROMPTS = frozenset({"text", "input", "input_ids", "prompt", "query"})
_OF_MEDIA = ("image", "video", "audio")  # how names of what is not for the tokenizer begin


class WorkerBody(NamedTuple):
    """A body as a worker gets it. `rid`: the router's name of the request, where it has one."""

    raw: bytes
    rid: str | None = None


class WorkerBodies:
    """Checks them. `vocab_size`: ids are in `[0, vocab_size)`."""

    def __init__(
        self, vocab_size: int, allowances: Allowances, *, isolates_owners: bool = False
    ) -> None:
        self.allowances = allowances
        self._isolates_owners = isolates_owners
        self._vocab_size = vocab_size

    def __repr__(self) -> str:
        return f"<WorkerBodies for {self._vocab_size} ids>"

    def prepared(self, raw: bytes, is_conversation: bool, who: Caller) -> WorkerBody:
        """The body as a worker gets it for `who`: as it came, unless callers' differ in it.

        A byte order mark is not for a worker.
        A rid of the caller's choice is left out where another caller's could be the same, and has
        its length in front where an abort by it could end others.

        Raises:
            BadRequest: a worker might not survive it.
        """
        raw = without_mark(raw)
        body = self._checked(raw, is_conversation)
        is_parted = self._isolates_owners and bool(who.owner)
        given = body.get("rid")
        rid = who.own_rid(given) if given and isinstance(given, str) else None
        passed = None if rid is None or who.tag else passed_rid(rid)
        is_named = passed != rid and not who.tag
        if not body or not (who.tag or is_parted or is_named):
            return WorkerBody(raw, rid)
        own = {name: value for name, value in body.items() if name != "rid" or not who.tag}
        if is_named:
            own["rid"] = passed
        if is_parted:
            own = own_fields(own, who)
        return WorkerBody(raw if own == body else orjson.dumps(own), rid)

    def _checked(self, raw: bytes, is_conversation: bool) -> dict[str, Any]:
        """The JSON object in a body that no worker fails on; empty if the body is. Else BadRequest.

        In a conversation only lists that are named so hold ids: it has schemas of tools, with
        numbers of any kind.
        """
        if not raw.strip():
            return {}
        check_containers(raw)
        try:
            body = orjson.loads(raw)
        except orjson.JSONDecodeError as exc:
            raise BadRequest(
                f"The request body is not valid JSON: {exc}", code="invalid_json"
            ) from exc
        if not isinstance(body, dict):
            raise BadRequest("The request body must be a JSON object.", code="invalid_json")
        self.allowances.check(body)
        self._check_object(body, "", 0, is_strict=not is_conversation)
        return body

    def _check_object(
        self, body: Mapping[str, Any], where: str, depth: int, *, is_strict: bool
    ) -> None:
        for name, value in body.items():
            path = f"{where}.{name}"[:200] if where else name[:200]
            if name == "sampling_params":
                self._check_params(value, path)
            elif name == "logit_bias" and isinstance(value, dict):
                check_bias_keys(value, self._vocab_size, path)
            elif name in _NO_IDS or (not is_strict and name in ("tools", "functions")):
                continue
            else:
                self._check_field(name, value, path, depth, is_strict=is_strict)

    def _check_field(
        self, name: str, value: Any, path: str, depth: int, *, is_strict: bool
    ) -> None:
        is_named = name.endswith(_IDS) or (is_strict and name == "query")
        if name.startswith(_OF_MEDIA):
            is_strict = False
        elif is_strict and name in _PROMPTS:
            prompts = value if isinstance(value, list) and value else [value]
            if any(prompt in ("", []) for prompt in prompts):
                raise BadRequest(f"'{path}' cannot be empty.", param=path)
        if is_named and type(value) in (int, float):
            self._check_numbers([value], path)
        # In a list of texts, one may be a number: `text` has pairs of them.
        texts_at = 99 if name == "text" else 0 if is_named else 1
        self._check_value(value, path, depth, is_strict=is_strict or is_named, texts_at=texts_at)
        if name.endswith(_IDS) and _holds_no_id(value):
            raise wrong_type(path, "a list of integers")

    def _check_value(
        self, value: Any, path: str, depth: int, *, is_strict: bool, texts_at: int = 1
    ) -> None:
        """`texts_at`: from how many lists within each other on texts are read as numbers."""
        if depth > MAX_DEPTH:
            raise BadRequest("The request body is nested too deeply.", code="invalid_json")
        if isinstance(value, dict):
            self._check_object(value, path, depth + 1, is_strict=is_strict)
        elif isinstance(value, list):
            kinds = set(map(type, value))
            if is_strict and int in kinds:
                checked_ids(value, self._vocab_size, path)
            elif is_strict and (float in kinds or (str in kinds and texts_at <= 0)):
                self._check_numbers(value, path)
            if is_strict and list in kinds and [] in value:
                raise BadRequest(f"'{path}' holds an empty prompt.", param=path)
            if kinds & {dict, list}:
                for i, item in enumerate(value):
                    self._check_value(
                        item, f"{path}[{i}]", depth + 1, is_strict=is_strict, texts_at=texts_at - 1
                    )

    def _check_numbers(self, values: list[Any], path: str) -> None:
        """SGLang takes `7.0` and `"7"` for 7: what it would take for a bad id is one."""
        for value in values:
            if isinstance(value, str) and _NUMBER.fullmatch(value):
                is_id = len(value) <= MAX_NUMBER_LEN and 0 <= float(value) < self._vocab_size
            elif isinstance(value, int | float) and float(value).is_integer():
                is_id = 0 <= value < self._vocab_size
            else:
                continue
            if not is_id:
                checked_ids([self._vocab_size], self._vocab_size, path)

    def _check_params(self, value: Any, path: str) -> None:
        for params in value if isinstance(value, list) else [value]:
            if params is None:
                continue
            if not isinstance(params, dict):
                raise BadRequest(f"'{path}' must be an object.", param=path, code="invalid_type")
            check_sampling(params, self._vocab_size)


def _holds_no_id(value: Any) -> bool:
    """Whether a list of ids, or of such lists, holds a fraction or a null: workers answer 500."""
    if not isinstance(value, list):
        return False
    kinds = set(map(type, value))
    if type(None) in kinds or (
        float in kinds and not all(each.is_integer() for each in value if type(each) is float)
    ):
        return True
    return list in kinds and any(map(_holds_no_id, value))
