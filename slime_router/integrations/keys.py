"""The key with which a trainer and its agents ask a router that has keys."""

from __future__ import annotations

import os

from slime_router.client.keys import configured_key

KEY_VARIABLE = "SLIME_ROUTER_API_KEY"
NO_KEY = "none"  # for SDKs, which want one; a router without keys does not look at it


def router_key() -> str:
    """`SLIME_ROUTER_API_KEY`, or what the file in `SLIME_ROUTER_API_KEY_FILE` holds; else "none".

    Raises:
        ValueError: that file cannot be read, or is empty.
    """
    return configured_key(os.environ, (KEY_VARIABLE,)) or NO_KEY
