"""What all measurements of the front share: a picture to send, connections, percentiles."""

from __future__ import annotations

import io
import json
from statistics import median
from typing import TYPE_CHECKING, Any

import httpx
import psycopg
from PIL import Image
from sqlalchemy import make_url

if TYPE_CHECKING:
    from deploy.local.stack import Stack


def milliseconds(seconds: list[float]) -> dict[str, float]:
    """Median and 95th percentile."""
    ordered = sorted(seconds)
    return {"p50_ms": round(median(ordered) * 1e3, 2), "p95_ms": round(ordered[int(len(ordered) * 0.95)] * 1e3, 2)}


def caller(stack: Stack) -> httpx.Client:
    """A connection with the owner's key."""
    headers = {"Authorization": f"Bearer {stack.owner.api_key}"}
    return httpx.Client(base_url=stack.api_url, headers=headers, timeout=30)


def submit(client: httpx.Client, **params: Any) -> str:
    """Send the smallest job; returns its id."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 30, 30)).save(buffer, "PNG")
    files = [(f"{side}_images", ("picture.png", buffer.getvalue())) for side in ("content", "style")]
    words = ("params", (None, json.dumps({"subject_class": "dog"} | params)))
    answer = client.post("/jobs", files=[*files, words])
    answer.raise_for_status()
    return answer.json()["id"]


def database(stack: Stack) -> psycopg.Connection[Any]:
    """A connection to the stack's database."""
    dsn = make_url(stack.env["DATABASE_URL"]).set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(dsn, autocommit=True)
