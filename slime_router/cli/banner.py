"""What the router prints when it is up."""

from __future__ import annotations

from slime_router.host_port import host_port
from slime_router.replies.formats import Formats
from slime_router.server.app import Gateway


def banner(gateway: Gateway) -> str:
    """What the router prints at start: where it listens, what it serves and who can reach it."""
    config = gateway.config
    scheme = "http" if gateway.tls is None else "https"
    warning = gateway.access.warning(config.host)
    workers = ", ".join(worker.url for worker in gateway.pool.list())
    lines = (
        ("url", f"{scheme}://{host_port(config.host, config.port)}"),
        *([("WARNING", warning)] if warning else []),
        ("model", config.model_name),
        ("workers", workers or "none yet (POST /add_worker?url=...)"),
        ("history", f"{config.history}; capture {config.capture}"),
        *_formats(gateway.formats),
        ("template", gateway.template.findings.summary()),
        *_pictures(gateway),
    )
    return "slime_router is up\n" + "".join(f"  {name:<9} {value}\n" for name, value in lines)


def _pictures(gateway: Gateway) -> list[tuple[str, str]]:
    """What becomes of pictures, for a model that sees."""
    if not gateway.context.media.is_on:
        return []
    is_on = gateway.context.pictures.is_on
    return [("pictures", "captured" if is_on else "passed on to a worker, not captured")]


def _formats(formats: Formats) -> list[tuple[str, str]]:
    """How replies are parsed; in one line where neither is, for the same reason."""
    if formats.missing is not None and formats.tools == formats.reasoning:
        return [("parsers", str(formats.tools))]
    return [("tools", str(formats.tools)), ("reasoning", str(formats.reasoning))]
