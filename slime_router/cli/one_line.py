"""An argument parser whose errors are one line."""

from __future__ import annotations

import argparse
from typing import NoReturn

from slime_router import __version__
from slime_router.errors import printable

EXIT_WRONG_USE = 2
MOST_CHARS = 1000  # of a message: it may name a value


def error_line(message: str, program: str = "slime-router") -> str:
    """What is wrong, in one line, whatever a user has put into the values that it names."""
    shown = printable(message.rstrip())
    return f"{program}: error: {shown[:MOST_CHARS]}{'...' * (len(shown) > MOST_CHARS)}\n"


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """One line, then exit code 2."""
        self.exit(EXIT_WRONG_USE, error_line(message, self.prog))


def command_parser(name: str, description: str, epilog: str) -> OneLineParser:
    """The parser of `slime-router NAME`, whose texts are shown with their own line breaks."""
    p = OneLineParser(
        prog=f"slime-router {name}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--version", action="version", version=f"slime-router {__version__}")
    return p


def utf8(text: str) -> str:
    """The type of an argument that goes into a URL: a terminal may send any bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("it is not UTF-8") from None
    return text
