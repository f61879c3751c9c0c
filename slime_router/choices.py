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
