"""What the site has beyond its pages: the marks of tested blocks are removed, the reference is made
from the code, and pages that nobody put into the navigation stand at its end.

Loaded by mkdocs (`hooks` in mkdocs.yml).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from slime_router import errors
from slime_router.cli.settings.option import options
from slime_router.errors import RouterError
from slime_router.server.metrics import METRICS
from slime_router.telemetry.meters import INSTRUMENTS, PREFIX

OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(?:examples|tests|benchmarks|[A-Z])[^)]*\)")
MARKED = re.compile(r"^(```\w+) [^\n]+$", re.MULTILINE)
GENERATED = "generated/"
BEFORE_THE_START = (errors.SetupError, errors.WorkerRefused)  # they never reach a client as such


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page without what only a reader of the repository can use: the words after a block's
    language, which are for tests, and links to files that are not pages.
    """
    return OUTSIDE.sub(r"\1", MARKED.sub(r"\1", markdown))


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds pages that are not in the navigation, so that a new one can be read at once."""
    assert config.nav is not None
    folder = Path(config.docs_dir)
    known = set(_named(config.nav))
    pages = (str(page.relative_to(folder)) for page in sorted(folder.rglob("*.md")))
    if more := [page for page in pages if page not in known]:
        config.nav.append({"More": more})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made from the code."""
    for name, content in {"flags": flags(), "metrics": metrics(), "errors": error_table()}.items():
        path = f"{GENERATED}{name}.md"
        files.append(File.generated(config, path, content=content))
    return files


def flags() -> str:
    """Every setting, by the groups of `--help`."""
    lines = ["# Settings", "", "Made from the code. [How they are given](../api.md#flags).", ""]
    for title, group in options().items():
        lines += [f"## {title.capitalize()}", "", "| flag, variable | default | |", "|---|---|---|"]
        for option in group:
            names = ", ".join(f"`{flag}`" for flag in option.flags) or f"`{option.key}` in a file"
            shorthands = "".join(f", `{flag}`" for flag, *_ in option.setting.shorthands)
            default = "required" if option.is_required else option.default_in_words()
            about = _cell(option.setting.help)
            lines.append(f"| {names}{shorthands}<br>`{option.variable}` | {default} | {about} |")
        lines.append("")
    return "\n".join(lines)


def metrics() -> str:
    """Every metric of the text formats."""
    lines = ["# Metrics", "", "Made from the code. [How they are read](../api.md#operation).", ""]
    lines += ["| name | kind | labels | |", "|---|---|---|---|"]
    for metric in (*METRICS, *INSTRUMENTS):
        kind = metric.kind
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| `{PREFIX}{metric.name}` | {kind} | {labels} | {_cell(metric.help)} |")
    return "\n".join(lines)


def error_table() -> str:
    """Every error that a client may get."""
    lines = ["# Errors", "", "Made from the code. [Their shape](../api.md#errors).", ""]
    lines += ["| status | type | code | |", "|---|---|---|---|"]
    kinds = {(kind.status, kind.type, str(kind.code), _first_line(kind)) for kind in _every_error()}
    lines += [f"| {s} | `{t}` | `{c}` | {_cell(about)} |" for s, t, c, about in sorted(kinds)]
    return "\n".join(lines)


def _named(nav: Any) -> Iterator[str]:
    """The pages of a navigation, however deep."""
    if isinstance(nav, str):
        yield nav
    elif isinstance(nav, dict):
        for value in nav.values():
            yield from _named(value)
    else:
        for entry in nav:
            yield from _named(entry)


def _every_error(base: type[RouterError] = RouterError) -> Iterator[type[RouterError]]:
    if base not in BEFORE_THE_START:
        yield base
    for kind in base.__subclasses__():
        yield from _every_error(kind)


def _first_line(kind: type[RouterError]) -> str:
    return (kind.__doc__ or "").strip().partition("\n")[0]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
