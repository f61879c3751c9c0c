"""A bar for what takes a while, on standard error and only where that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")


def bar() -> Progress:
    """A bar that disappears when it is done; without a terminal it shows nothing."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,  # what goes there is for programs
        redirect_stderr=False,
        disable=not sys.stderr.isatty(),
    )


def tracked(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """The items, with a bar that says how many of `total` were taken."""
    with bar() as progress:
        task = progress.add_task(what, total=total)
        for item in items:
            yield item
            progress.advance(task)
