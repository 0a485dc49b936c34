"""Links to S3 objects that carry their permission (AWS Signature Version 4 in the query). Pure.

botocore can make them too, but takes as long for one as a whole request may: a job has a dozen.
"""

from __future__ import annotations

import hashlib
import hmac
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

_ALGORITHM = "AWS4-HMAC-SHA256"
_DEFAULT_PORTS = {"http": 80, "https": 443}


@lru_cache(maxsize=1024)
def _quoted(text: str) -> str:
    """Quote what is said of a file: all jobs have files of the same few names."""
    return quote(text, safe="~")


class Presigner:
    """Signs links for one bucket behind one endpoint.

    Args:
        endpoint: URL of the store as callers reach it.
        bucket: put into the path.
        region: of the bucket.
        access_key_id: whose permission the links carry.
        secret_access_key: its secret.
    """

    def __init__(self, endpoint: str, bucket: str, *, region: str, access_key_id: str, secret_access_key: str) -> None:
        parts = urlsplit(endpoint)
        port = "" if parts.port in {None, _DEFAULT_PORTS.get(parts.scheme)} else f":{parts.port}"
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        self._host = f"{host}{port}"
        self._origin = f"{parts.scheme}://{self._host}"
        self._folder = f"{parts.path.rstrip('/')}/{quote(bucket, safe='')}"
        self._region = region
        self._access_key_id = quote(access_key_id, safe="~")
        self._secret = secret_access_key
        self._day_key = ("", b"")

    def get(self, key: str, *, at: datetime, lifetime_s: int, response: Mapping[str, str]) -> str:
        """Return a link that works for GET, for one object.

        Args:
            key: the object.
            at: the instant, in UTC, from which the lifetime counts.
            lifetime_s: seconds.
            response: fields of the store's answer, as `response-content-type`.
        """
        # In the order of their names, as the signature wants them; those of S3 come before those of the answer.
        fields = "".join(f"&{name}={_quoted(response[name])}" for name in sorted(response))
        return self._sign("GET", key, at=at, lifetime_s=lifetime_s, fields=fields, headers={})

    def put(self, key: str, *, at: datetime, lifetime_s: int, headers: Mapping[str, str]) -> str:
        """Return a link that works for PUT, for one object, and only for a request with exactly these headers.

        Args:
            key: the object.
            at: the instant, in UTC, from which the lifetime counts.
            lifetime_s: seconds.
            headers: by their names in lower case.
        """
        return self._sign("PUT", key, at=at, lifetime_s=lifetime_s, fields="", headers=headers)

    def _sign(
        self, method: str, key: str, *, at: datetime, lifetime_s: int, fields: str, headers: Mapping[str, str]
    ) -> str:
        stamp = f"{at:%Y%m%dT%H%M%SZ}"
        scope = f"{stamp[:8]}/{self._region}/s3/aws4_request"
        path = f"{self._folder}/{quote(key, safe='/~')}"
        signed = {**headers, "host": self._host}
        names = sorted(signed)
        query = (
            f"X-Amz-Algorithm={_ALGORITHM}"
            f"&X-Amz-Credential={self._access_key_id}%2F{scope.replace('/', '%2F')}"
            f"&X-Amz-Date={stamp}&X-Amz-Expires={lifetime_s}&X-Amz-SignedHeaders={'%3B'.join(names)}{fields}"
        )
        lines = "".join(f"{name}:{signed[name]}\n" for name in names)
        request = f"{method}\n{path}\n{query}\n{lines}\n{';'.join(names)}\nUNSIGNED-PAYLOAD"
        to_sign = f"{_ALGORITHM}\n{stamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        signature = hmac.digest(self._key(stamp[:8]), to_sign.encode(), "sha256").hex()
        return f"{self._origin}{path}?{query}&X-Amz-Signature={signature}"

    def _key(self, day: str) -> bytes:
        """Return the key of a day; it is the same for all its links."""
        known, key = self._day_key
        if known != day:
            key = f"AWS4{self._secret}".encode()
            for part in (day, self._region, "s3", "aws4_request"):
                key = hmac.digest(key, part.encode(), "sha256")
            self._day_key = (day, key)
        return key
