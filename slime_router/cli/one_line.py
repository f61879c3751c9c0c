"""An argument parser whose errors are one line."""

from __future__ import annotations

import argparse
from typing import NoReturn

EXIT_WRONG_USE = 2


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """One line, then exit code 2."""
        self.exit(EXIT_WRONG_USE, f"{self.prog}: error: {message}\n")
