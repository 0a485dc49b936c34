"""Secrets that protect nothing: empty ones, and those that manuals and images of containers come with."""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import parse_qs, unquote, urlsplit

KNOWN = frozenset(
    {
        "admin",
        "adminadmin",
        "change-me",
        "change_me",
        "changeit",
        "changeme",
        "changeme123",
        "default",
        "duolora",
        "example",
        "insecure",
        "letmein",
        "minioadmin",
        "password",
        "password123",
        "postgres",
        "redis",
        "root",
        "rustfsadmin",
        "s3cr3t",
        "secret",
        "secretkey",
        "secretpassword",
        "supersecret",
        "test",
        "testtest",
        "valkey",
        "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".lower(),
    }
)
"""In small letters."""
_OTHER_PROOFS = ("sslcert", "passfile", "ssl_certfile")
"""Parameters of a URL by which a client shows who it is without a password."""


def check_secret(value: str) -> None:
    """Refuse a secret that everybody knows.

    Raises:
        ValueError: it is empty or a known default.
    """
    if not value.strip():
        raise ValueError("is empty; set one of your own, for example: openssl rand -hex 24")
    if value.strip().lower() in KNOWN:
        raise ValueError("is a default that everybody knows; set one of your own, for example: openssl rand -hex 24")


def check_url(url: str) -> None:
    """Refuse a server's URL whose password is none; on this machine, who may connect is decided otherwise.

    Raises:
        ValueError: its password is a known default, or it has none and the server is elsewhere.
    """
    parts = urlsplit(url)
    if parts.password:
        try:
            check_secret(unquote(parts.password))
        except ValueError as error:
            raise ValueError(f"the password in the URL {error}") from error
    elif not _is_here(parts.hostname) and not any(proof in parse_qs(parts.query) for proof in _OTHER_PROOFS):
        raise ValueError("the URL of a server on another machine needs a password: scheme://user:PASSWORD@host/...")


def _is_here(host: str | None) -> bool:
    """Say whether a host is this machine, by a Unix socket or the loopback."""
    if host is None or host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
