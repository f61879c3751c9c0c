"""Settings that are a choice among words."""

from __future__ import annotations

from typing import Literal, TypeAlias

History: TypeAlias = Literal["held", "template"]
Capture: TypeAlias = Literal["full", "distribution", "tokens", "off"]
EncoderName: TypeAlias = Literal["auto", "tokenizers", "fastokens"]
Resume: TypeAlias = Literal["chat", "all", "none"]  # which aborted generations are resumed
PolicyName: TypeAlias = Literal[
    "cache_aware", "least_inflight", "consistent_hashing", "power_of_two", "round_robin", "random"
]
ReasoningField: TypeAlias = Literal["reasoning_content", "both"]
StrictFields: TypeAlias = Literal["ignore", "warn", "refuse"]
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]
LogFormat: TypeAlias = Literal["text", "json"]
JournalSync: TypeAlias = Literal["normal", "full"]
OnJournalError: TypeAlias = Literal["degrade", "stop"]


def read_version_policy(text: str) -> int | None:
    """How many weight updates a worker may lag and still serve, as users write it; None for any.

    Raises:
        ValueError: it is neither `any`, nor `latest`, nor `max-staleness:K`.
    """
    name, _, most = text.partition(":")
    if name == "max-staleness" and most.isdecimal() and len(most) < 10:
        return int(most)
    if text not in ("any", "latest"):
        raise ValueError(f"{text:.40} is not any, latest or max-staleness:K")
    return 0 if text == "latest" else None


def show_version_policy(lag: int | None) -> str:
    """The inverse of `read_version_policy`."""
    if lag is None:
        return "any"
    return f"max-staleness:{lag}" if lag else "latest"
