"""The broker's URL as Redis' own client reads it: Celery has a scheme of its own for sockets."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit


def client_url(url: str) -> str:
    """Return `redis://...` or `unix://...`, of one of these or of Celery's `redis+socket://`."""
    parts = urlsplit(url)
    if parts.scheme != "redis+socket":
        return url
    base = parse_qs(parts.query).get("virtual_host", ["0"])[0].strip("/")
    return f"unix://{parts.netloc}{parts.path}?db={base}"
