"""How replies name a token beside its log-probability."""

from __future__ import annotations

from slime_router.api.token_ids import Vocabulary


class TokenNames:
    """Names by text, or by id where the client asks for that: `token_id:40`.

    Ids are vLLM's `return_tokens_as_token_ids`: trainers read them back as ints.
    """

    def __init__(self, vocabulary: Vocabulary, *, by_id: bool = False) -> None:
        self._vocabulary = vocabulary
        self._by_id = by_id

    def text(self, token_id: int) -> str:
        """The token's text; bytes that are not a character are replaced."""
        if self._by_id:
            return id_name(token_id)
        return self._vocabulary.token_bytes(token_id).decode("utf-8", "replace")

    def key(self, token_id: int) -> str:
        r"""A name that two tokens with different bytes never share.

        Bytes that are not a character are written as OpenAI does: `bytes:\xe2\x96`.
        """
        if self._by_id:
            return id_name(token_id)
        raw = self._vocabulary.token_bytes(token_id)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes that the token stands for."""
        return self._vocabulary.token_bytes(token_id)


def id_name(token_id: int) -> str:
    """`token_id:40`."""
    return f"token_id:{token_id}"
