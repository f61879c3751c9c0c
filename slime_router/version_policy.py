"""How many weight updates a worker may lag and still serve, as users write it."""

from __future__ import annotations


def read_version_policy(text: str) -> int | None:
    """The number of updates; None for any number.

    Raises:
        ValueError: it is neither `any`, nor `latest`, nor `max-staleness:K`.
    """
    name, _, most = text.partition(":")
    if name == "max-staleness" and most.isdecimal():
        return int(most)
    if text not in ("any", "latest"):
        raise ValueError(f"{text} is not any, latest or max-staleness:K")
    return 0 if text == "latest" else None


def show_version_policy(lag: int | None) -> str:
    """The inverse of `read_version_policy`."""
    if lag is None:
        return "any"
    return f"max-staleness:{lag}" if lag else "latest"
