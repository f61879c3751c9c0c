"""`slime-router top`: workers, rates and sessions of a running router, live.

Exit codes: 0 fine, 1 the router does not answer or refuses, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import orjson
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from slime_router.cli.one_line import EXIT_WRONG_USE, command_parser, error_line
from slime_router.cli.terminal.figures import count, many, percent, plain, table
from slime_router.cli.terminal.remote import ABOUT_KEYS, BadPlace, Remote, add_url
from slime_router.client import ClientError

EXIT_FAILED = 1
DOORS = ("chat_completion", "generate")
SESSIONS = 10  # the newest that are shown
MIN_INTERVAL_S, MAX_INTERVAL_S = 0.2, 3600.0

_EPILOG = f"""\
examples:
  slime-router top
  slime-router top --url http://10.0.0.1:30001 --interval 5
  slime-router top --once                 # one look, for a script or a log
  slime-router top --once --json | jq .metrics.cache.hit_rate

{ABOUT_KEYS}"""


@dataclass(frozen=True, slots=True)
class Look:
    """What the router said at one moment. `workers` and `sessions` may be a refusal in words."""

    at_s: float
    metrics: dict[str, Any]
    workers: list[dict[str, Any]] | str
    sessions: list[dict[str, Any]] | str

    def total(self, key: str) -> float:
        """The sum of a figure over both doors."""
        return float(sum(self.metrics[door][key] for door in DOORS))


def top_main(argv: Sequence[str]) -> int:
    """Show it until the user interrupts; returns the exit code. `argv` does not include `top`."""
    arguments = parser()
    asked = arguments.parse_args(argv)
    if asked.json and not asked.once:
        arguments.error("--json needs --once")
    try:
        remote = Remote(asked.url)
        if asked.once:
            _once(look(remote), is_json=asked.json)
        else:
            _live(remote, asked.interval)
    except BadPlace as exc:
        return _failed(str(exc), EXIT_WRONG_USE)
    except ClientError as exc:
        return _failed(exc.message, EXIT_FAILED)
    except KeyboardInterrupt:
        pass
    return 0


def parser() -> argparse.ArgumentParser:
    """The parser of the arguments."""
    p = command_parser(
        "top", "Workers, rates and the newest sessions of a running router.", _EPILOG
    )
    add_url(p)
    p.add_argument(
        "--interval",
        type=_interval,
        default=2.0,
        metavar="SECONDS",
        help="how often to look (default: 2)",
    )
    p.add_argument("--once", action="store_true", help="look once, print it and exit")
    p.add_argument("--json", action="store_true", help="with --once: all figures as JSON")
    return p


def look(remote: Remote) -> Look:
    """One look.

    Raises:
        ClientError: the router does not answer, or refuses its metrics.
    """
    metrics = remote.get("/metrics", "trajectories", format="json")
    return Look(
        time.monotonic(),
        metrics,
        _or_refusal(remote, "/workers", "workers"),
        _or_refusal(remote, "/sessions", "sessions", limit=SESSIONS, order="desc"),
    )


def screen(now: Look, before: Look | None, url: str) -> RenderableType:
    """Everything that is shown; without a look before there are totals instead of rates."""
    return Group(_head(now, url), Text(), _rates(now, before), Text(), _workers(now), Text(),
                 _sessions(now))  # fmt: skip


def _once(now: Look, *, is_json: bool) -> None:
    if is_json:
        body = {"metrics": now.metrics, "workers": now.workers, "sessions": now.sessions}
        sys.stdout.write(orjson.dumps(body).decode() + "\n")
    else:
        Console().print(screen(now, None, ""))


def _live(remote: Remote, interval_s: float) -> None:
    before, now = None, look(remote)
    with Live(
        screen(now, None, remote.url), screen=sys.stdout.isatty(), auto_refresh=False
    ) as live:
        while True:
            live.update(screen(now, before, remote.url), refresh=True)
            time.sleep(interval_s)
            before, now = now, look(remote)


def _or_refusal(remote: Remote, path: str, key: str, **query: Any) -> list[dict[str, Any]] | str:
    try:
        found: list[dict[str, Any]] = remote.get(path, key, **query)[key]
    except ClientError as exc:
        if exc.status is None:
            raise
        return exc.message
    return found


def _head(now: Look, url: str) -> Text:
    held, weights = now.metrics["trajectories"], now.metrics["weights"]["current"]
    text = Text.assemble(("slime_router", "bold"), f" {url}".rstrip())
    text.append(f"  {many(held['turns'], 'turn')} in {many(held['sessions'], 'session')}", "dim")
    if weights is not None:
        text.append_text(Text("  weights ", "dim")).append_text(plain(weights))
    return text


def _rates(now: Look, before: Look | None) -> RenderableType:
    made = table("Rates" if before else "Since the start", "", "value", numbers=("value",))
    passed_s = 1.0 if before is None else max(now.at_s - before.at_s, 1e-3)
    unit = "" if before is None else "/s"

    def more(key: str) -> float:
        return now.total(key) - (0.0 if before is None else before.total(key))

    reused, encoded = more("reused_tokens"), more("encoded_tokens")
    for name, value in (
        ("requests", more("started")),
        ("sampled tokens", more("output_tokens")),
        ("prompt tokens", reused + encoded),
    ):
        made.add_row(name, f"{count(value / passed_s)}{unit}")
    made.add_row("prompt reused", percent(reused, reused + encoded))
    made.add_row("under way", count(now.metrics["router"]["total_in_flight"]))
    made.add_row("waiting", count(now.metrics["admission"]["waiting"]))
    failed = more("failed")
    made.add_row("failed", Text(count(failed), "bold red" if failed else ""))
    return made


def _workers(now: Look) -> RenderableType:
    if isinstance(now.workers, str):
        return Text(f"Workers: {now.workers}", "yellow")
    made = table("Workers", "", "worker", "state", "load", "version", "context", "tokens",
                 numbers=("load", "context"))  # fmt: skip
    exactness = {True: Text("exact"), False: Text("differ", "red")}
    for worker in now.workers:
        state = plain(worker["status"])
        if worker["reason"]:
            state.append_text(Text(": ")).append_text(plain(worker["reason"]))
        made.add_row(
            Text("●", "green" if worker["is_healthy"] else "red"),
            plain(worker["url"]),
            state,
            f"{worker['load']}+{worker['queued']}",
            plain(worker["weight_version"] or "–"),
            count(worker["context_len"]),
            exactness.get(worker["is_token_exact"], Text("not checked", "dim")),
        )
    return made if now.workers else Text("No worker is registered.", "yellow")


def _sessions(now: Look) -> RenderableType:
    if isinstance(now.sessions, str):
        return Text(f"Sessions: {now.sessions}", "yellow")
    return session_table("Newest sessions", now.sessions)


def session_table(title: str, sessions: Sequence[dict[str, Any]]) -> RenderableType:
    """One line for each session."""
    if not sessions:
        return Text("No sessions.", "dim")
    made = table(title, "session", "state", "turns", "sampled", "running", "group", "reward",
                 numbers=("turns", "sampled", "running"))  # fmt: skip
    for session in sessions:
        made.add_row(
            plain(session["session_id"]),
            Text(session["state"], "green" if session["state"] == "open" else ""),
            count(session["turns"]),
            count(session["sampled_tokens"]),
            count(session["running"]),
            plain(session["group_id"] or "–"),
            plain("–" if session["reward"] is None else session["reward"]),
        )
    return made


def _interval(text: str) -> float:
    with suppress(ValueError):
        if MIN_INTERVAL_S <= (value := float(text)) <= MAX_INTERVAL_S:
            return value
    raise argparse.ArgumentTypeError(f"must be from {MIN_INTERVAL_S} to {MAX_INTERVAL_S:.0f}")


def _failed(message: str, code: int) -> int:
    sys.stderr.write(error_line(message, "slime-router top"))
    return code
