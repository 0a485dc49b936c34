"""The object store: S3 and nothing else, because a real S3 server comes from a wheel.

Owns uploads, downloads and signed links; what objects are called is in `api.object_keys`. Two endpoints: the services
talk to one, callers' links are signed for the other.
"""

from __future__ import annotations

import logging
import secrets
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from http import HTTPStatus
from http.client import HTTPException
from typing import TYPE_CHECKING, cast
from urllib.parse import quote, urlsplit

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from api.presign import Presigner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.literals import BucketLocationConstraintType

    from api.settings import StoreSettings

logger = logging.getLogger(__name__)

MAX_DELETE = 1000
"""Most keys in one S3 multi-delete."""
SINGLE_PUT_BYTES = 8 * 1024 * 1024
"""Smaller files go in one request: what sends files in parts starts threads of its own for each file."""
CHUNK_BYTES = 1024 * 1024
SENDERS = 8
"""Files that one process stores at once with `put_files`; others wait."""

_NOT_FOUND = {"404", "NoSuchKey", "NotFound", "NoSuchBucket"}
_PASSING = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}
"""Refusals that say nothing of the request itself."""
_LONG_AGO = timedelta(hours=1)
"""When the link was signed that is to have expired: more than clocks may differ."""
_REMEDY = "check S3_PUBLIC_ENDPOINT, S3_REGION, and that the clocks of store and service agree"
_UNCHECKED = "the store serves requests without a valid signature; give it access keys"
_FIRST_REGION = "us-east-1"
"""The one region that AWS does not let a new bucket name."""
_BUCKET_EXISTS = {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}


class StoreError(Exception):
    """The object store refused or did not answer; another try can help."""


class ObjectMissing(StoreError):
    """There is no object under that key."""


class _Unreachable(StoreError):
    """Nobody answers at an endpoint."""


class StoreMisconfigured(StoreError):
    """The self-test found that the store does not keep what the service relies on."""


def _client(settings: StoreSettings, endpoint: str) -> S3Client:
    """Make a client; checksums only where S3 requires them, as other servers do not all speak the newer ones."""
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name=settings.region,
        aws_access_key_id=settings.access_key_id.get_secret_value(),
        aws_secret_access_key=settings.secret_access_key.get_secret_value(),
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            connect_timeout=5,
            read_timeout=30,
            retries={"mode": "standard", "max_attempts": 3},
            max_pool_connections=32,
        ),
    )


@contextmanager
def _mapped(act: str) -> Iterator[None]:
    """Map what boto3 raises to this module's errors.

    Raises:
        ObjectMissing: the key or bucket is not there.
        StoreError: anything else.
    """
    try:
        yield
    except ClientError as error:
        kind = ObjectMissing if error.response.get("Error", {}).get("Code") in _NOT_FOUND else StoreError
        raise kind(f"cannot {act}: {error}") from error
    except (BotoCoreError, Boto3Error) as error:
        raise StoreError(f"cannot {act}: {error}") from error


@dataclass(frozen=True, slots=True)
class ObjectHead:
    """What the store says of an object."""

    bytes: int
    content_type: str


class ObjectStore:
    """One bucket of an S3 store. Safe to share between threads."""

    def __init__(self, settings: StoreSettings) -> None:
        self._bucket = settings.bucket
        self._endpoint = settings.endpoint
        self._region = settings.region
        self._has_public_endpoint = settings.public_endpoint not in {None, settings.endpoint}
        self._senders = ThreadPoolExecutor(SENDERS, thread_name_prefix="store")
        self._internal = _client(settings, settings.endpoint)
        self._presigner = Presigner(
            settings.public_endpoint or settings.endpoint,
            settings.bucket,
            region=settings.region,
            access_key_id=settings.access_key_id.get_secret_value(),
            secret_access_key=settings.secret_access_key.get_secret_value(),
        )

    def put_bytes(self, key: str, data: bytes, content_type: str) -> None:
        """Store bytes under a key."""
        with _mapped(f"store {key}"):
            self._internal.put_object(Bucket=self._bucket, Key=key, Body=data, ContentType=content_type)

    def put_file(self, key: str, path: Path, content_type: str) -> None:
        """Store a file under a key; large ones go in parts."""
        with _mapped(f"store {key}"):
            if path.stat().st_size >= SINGLE_PUT_BYTES:
                self._internal.upload_file(str(path), self._bucket, key, ExtraArgs={"ContentType": content_type})
                return
            with path.open("rb") as body:
                self._internal.put_object(Bucket=self._bucket, Key=key, Body=body, ContentType=content_type)

    def put_files(self, files: Mapping[str, Path], content_type: str) -> None:
        """Store files of one type under their keys, several at a time; the calling thread takes its share.

        Raises:
            StoreError: one could not be stored. Nothing of the others is under way any more, so all may be deleted.
        """
        if not files:
            return
        (key, path), *others = files.items()
        sent = [self._senders.submit(self.put_file, *other, content_type) for other in others]
        try:
            self.put_file(key, path, content_type)
        finally:
            wait(sent)
        for each in sent:
            each.result()

    def get_bytes(self, key: str) -> bytes:
        """Return an object's bytes."""
        with _mapped(f"read {key}"):
            return self._internal.get_object(Bucket=self._bucket, Key=key)["Body"].read()

    def get_file(self, key: str, path: Path) -> None:
        """Write an object's bytes to a file."""
        with _mapped(f"read {key}"):
            self._internal.download_file(self._bucket, key, str(path))

    def head(self, key: str) -> ObjectHead:
        """Return what the store says of an object.

        Raises:
            ObjectMissing: there is none.
        """
        with _mapped(f"look at {key}"):
            found = self._internal.head_object(Bucket=self._bucket, Key=key)
        return ObjectHead(found["ContentLength"], found["ContentType"])

    def get_file_within(self, key: str, path: Path, most: int) -> bool:
        """Write an object's bytes to a file; False, and not all of them, if there are more than so many.

        Raises:
            ObjectMissing: there is no object.
        """
        written = 0
        with _mapped(f"read {key}"), path.open("wb") as file:
            answer = self._internal.get_object(Bucket=self._bucket, Key=key)
            with closing(answer["Body"]) as body:
                for chunk in body.iter_chunks(CHUNK_BYTES):
                    written += len(chunk)
                    if written > most:
                        return False
                    file.write(chunk)
        return True

    def copy(self, source: str, target: str) -> None:
        """Make an object under another key of what one holds, inside the store; the type goes along.

        Raises:
            ObjectMissing: there is no source.
        """
        with _mapped(f"copy {source}"):
            self._internal.copy_object(
                Bucket=self._bucket, Key=target, CopySource={"Bucket": self._bucket, "Key": source}
            )

    def keys(self, prefix: str = "") -> list[str]:
        """Return all keys that begin with a prefix."""
        with _mapped(f"list {prefix}"):
            pages = self._internal.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
            return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; a key that is not there is no error."""
        for start in range(0, len(keys), MAX_DELETE):
            part = keys[start : start + MAX_DELETE]
            with _mapped(f"delete {len(part)} objects"):
                answer = self._internal.delete_objects(
                    Bucket=self._bucket, Delete={"Objects": [{"Key": key} for key in part], "Quiet": True}
                )
            if answer.get("Errors"):
                raise StoreError(f"cannot delete {answer['Errors'][0].get('Key')}")

    def presigned_get(self, key: str, *, filename: str, content_type: str, expires: timedelta) -> str:
        """Return a link for callers that works for GET, for this object, until `expires` from now."""
        return self._presigner.get(
            key,
            at=datetime.now(UTC),
            lifetime_s=int(expires.total_seconds()),
            response={
                "response-content-disposition": _attachment(filename),
                "response-content-type": content_type,
            },
        )

    def presigned_put(self, key: str, *, headers: Mapping[str, str], expires: timedelta) -> str:
        """Return a link for callers that works for PUT, here, with these headers, until `expires` from now."""
        lifetime_s = int(expires.total_seconds())
        return self._presigner.put(key, at=datetime.now(UTC), lifetime_s=lifetime_s, headers=headers)

    def put_by_link(self, link: str, data: bytes, headers: Mapping[str, str]) -> bool:
        """Send bytes to a callers' link as its owner would; False if the store refuses them.

        Raises:
            StoreError: the store does not answer, or fails.
        """
        return self._way_of(link)(link, data=data, headers=headers) is not None

    def ensure_bucket(self) -> None:
        """Make the bucket if it is not there."""
        with _mapped(f"make bucket {self._bucket}"):
            try:
                self._internal.head_bucket(Bucket=self._bucket)
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") not in _NOT_FOUND:
                    raise
                self._create_bucket()

    def ping(self) -> None:
        """Ask for the bucket.

        Raises:
            StoreError: the store does not answer or the bucket is not there.
        """
        with _mapped(f"reach bucket {self._bucket}"):
            self._internal.head_bucket(Bucket=self._bucket)

    def self_test(self) -> None:
        """Prove at start what the service relies on: links work, and only as signed and while they last.

        Links to write are a comfort: an endpoint that lets nobody write by them is told of, not refused.

        Raises:
            StoreMisconfigured: a promise is broken, for example a store without keys that serves everybody.
            StoreError: the store does not answer.
        """
        key, data = f"self-test/{secrets.token_hex(8)}", secrets.token_bytes(32)
        try:
            self._test_links(key, data)
            if self.get_bytes(key) != data:
                raise StoreMisconfigured("an object came back with other bytes")
        finally:
            self.delete([key])

    def _test_links(self, key: str, data: bytes) -> None:
        headers = {"content-length": str(len(data)), "content-type": "application/octet-stream"}
        minute = timedelta(minutes=1)
        write = self.presigned_put(key, headers=headers, expires=minute)
        send = self._way_of(write)
        if send(_tampered(write), data=data, headers=headers) is not None:
            raise StoreMisconfigured(_UNCHECKED)
        if send(write, data=data, headers=headers) is None:
            logger.warning("a signed link for writing does not work: uploads by link are refused; %s", _REMEDY)
            self.put_bytes(key, data, headers["content-type"])
        link = self.presigned_get(key, filename="t", content_type=headers["content-type"], expires=minute)
        fetch = self._way_of(link)
        if fetch(link) != data:
            raise StoreMisconfigured(f"a signed link does not work; {_REMEDY}")
        if fetch(_tampered(link)) is not None or fetch(link.split("?", 1)[0]) is not None:
            raise StoreMisconfigured(_UNCHECKED)
        over = self._presigner.get(key, at=datetime.now(UTC) - _LONG_AGO, lifetime_s=60, response={})
        if fetch(over) is not None:
            raise StoreMisconfigured("the store serves a signed link whose time is over; look at its clock")

    def _way_of(self, link: str) -> Callable[..., bytes | None]:
        """Return how callers' links are used from here: `_fetch`, perhaps with its endpoint.

        By the public endpoint. Where that leads nowhere, as the outer port of a container does inside it, by the
        internal one under the public one's name, which is what was signed.

        Raises:
            StoreError: there is no other way, or the store fails.
        """
        try:
            _fetch(link)
        except _Unreachable as error:
            if not self._has_public_endpoint:
                raise
            logger.warning("%s; signed links are tested at S3_ENDPOINT under the public name", error)
            return partial(_fetch, endpoint=self._endpoint)
        return _fetch

    def _create_bucket(self) -> None:
        place = cast("BucketLocationConstraintType", self._region)
        try:
            if place == _FIRST_REGION:
                self._internal.create_bucket(Bucket=self._bucket)
            else:
                self._internal.create_bucket(
                    Bucket=self._bucket, CreateBucketConfiguration={"LocationConstraint": place}
                )
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") not in _BUCKET_EXISTS:
                raise


def _tampered(link: str) -> str:
    """Return a link of one minute with a second more than was signed."""
    return link.replace("X-Amz-Expires=60", "X-Amz-Expires=61")


@lru_cache(maxsize=1024)
def _attachment(filename: str) -> str:
    """Have a browser save a file under its name."""
    return f"attachment; filename*=UTF-8''{quote(filename)}"


def _fetch(
    url: str, *, endpoint: str | None = None, data: bytes | None = None, headers: Mapping[str, str] | None = None
) -> bytes | None:
    """Return the body at a link of our own store, or None if it is refused; by another endpoint if one is given.

    With `data` these bytes are PUT there.

    Raises:
        StoreError: nothing answers, or the store fails, as it may not the next time.
    """
    way, sent = url, dict(headers or {})
    if endpoint is not None:
        parts = urlsplit(url)
        way = endpoint.rstrip("/") + url.removeprefix(f"{parts.scheme}://{parts.netloc}")
        sent["Host"] = parts.netloc
    method = "GET" if data is None else "PUT"
    request = urllib.request.Request(way, data, sent, method=method)  # noqa: S310 - made from our settings
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - likewise
            body: bytes = answer.read()
            return body
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in _PASSING or error.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise StoreError(f"a signed link was answered with status {error.code}") from error
        return None
    except (OSError, HTTPException) as error:
        raise _Unreachable(f"cannot reach the public endpoint: {error}") from error
