"""A running router, asked from a terminal: where it is, with which key, and its JSON."""

from __future__ import annotations

import argparse
import json
import os
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode

from slime_router.cli.settings.option import ENVIRONMENT
from slime_router.client import ClientError
from slime_router.client.calls import Call
from slime_router.client.keys import configured_key, key_headers
from slime_router.client.sync import Client

DEFAULT_URL = "http://localhost:30001"
URL_VARIABLE = f"{ENVIRONMENT}URL"
KEY_VARIABLES = (f"{ENVIRONMENT}ADMIN_API_KEY", f"{ENVIRONMENT}API_KEY")
TIMEOUT_S = 30.0
ABOUT_KEYS = f"""\
The key is never an argument: it is read from {KEY_VARIABLES[0]} or {KEY_VARIABLES[1]},
or from the file that one of them with _FILE at its end names."""


class BadPlace(Exception):
    """The URL or the key cannot be used; the message is one line for the user."""


def add_url(parser: argparse.ArgumentParser) -> None:
    """The flag that says where the router is."""
    parser.add_argument(
        "--url",
        default=os.environ.get(URL_VARIABLE) or DEFAULT_URL,
        metavar="URL",
        help=f"where the router listens (default: {URL_VARIABLE}, or {DEFAULT_URL})",
    )


class Remote:
    """Asks one router.

    Raises:
        BadPlace: the URL is not one, or the file of the key cannot be read or is empty.
    """

    def __init__(self, url: str) -> None:
        try:
            headers = key_headers(configured_key(os.environ, KEY_VARIABLES))
            self._client = Client(url, timeout_s=TIMEOUT_S, headers=headers)
        except ValueError as exc:
            raise BadPlace(str(exc)) from None

    @property
    def url(self) -> str:
        """The URL that the router listens at."""
        return self._client.url

    def post(self, path: str, **body: Any) -> None:
        """Say something to a route.

        Raises:
            ClientError: there is no answer, or it is a refusal.
        """
        self._client.send(Call(method="POST", path=path, body=body))

    def get(self, path: str, key: str, /, **query: Any) -> Any:
        """The JSON object of a route; `key` is one that every router has there.

        Raises:
            ClientError: the server does not answer, refuses, or is not a router.
        """
        given = urlencode({name: value for name, value in query.items() if value is not None})
        text = self._client.send(Call(method="GET", path=f"{path}?{given}" if given else path))
        with suppress(ValueError):
            found = json.loads(text)
            if isinstance(found, dict) and key in found:
                return found
        raise ClientError(f"{self.url} does not answer as a router does.")
