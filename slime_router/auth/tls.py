"""TLS: the certificate that the router presents, and its key."""

from __future__ import annotations

import ssl
from pathlib import Path

from slime_router.configured_file import check_regular
from slime_router.errors import SetupError


def tls_context(cert_path: str | None, key_path: str | None) -> ssl.SSLContext | None:
    """The context that the server listens with; None for plain HTTP.

    Raises:
        SetupError: one file is given without the other, or they do not make a certificate.
    """
    if cert_path is None and key_path is None:
        return None
    if cert_path is None or key_path is None:
        raise SetupError("--tls-cert-path and --tls-key-path are given together, or not at all")
    for flag, path in (("--tls-cert-path", cert_path), ("--tls-key-path", key_path)):
        try:
            check_regular(Path(path))
        except OSError as exc:  # the ssl module does not say which of the two files it was
            raise SetupError(f"{flag} {path}: {exc.strerror}") from exc
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    load_certificate(context, cert_path, key_path)
    context.set_alpn_protocols(["http/1.1"])
    return context


def load_certificate(context: ssl.SSLContext, cert_path: str, key_path: str) -> None:
    """Gives `context` this certificate, for connections that are made from now on.

    Raises:
        SetupError: the two files do not make one.
    """
    try:
        context.load_cert_chain(cert_path, key_path, password=_no_password)
    except (ssl.SSLError, OSError) as exc:
        reason = getattr(exc, "reason", None) or "they hold no certificate and its key"
        words = str(reason).lower().replace("_", " ")
        raise SetupError(
            f"--tls-cert-path {cert_path}, --tls-key-path {key_path}: {words}"
        ) from exc


def _no_password() -> str:
    """A server that waits for somebody to type a password would never come up."""
    raise SetupError("--tls-key-path: the key is locked by a password; give one that is not")
