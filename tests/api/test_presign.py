"""Our links are those that botocore makes."""

from datetime import UTC, datetime
from urllib.parse import parse_qsl, urlsplit

import boto3
import pytest
from botocore.config import Config

from api.presign import Presigner

ANSWER = {
    "response-content-disposition": "attachment; filename*=UTF-8''caf%C3%A9%20%281%29.bin",
    "response-content-type": "application/x-test; a=b+c",
}


@pytest.mark.parametrize(
    "endpoint",
    ["http://127.0.0.1:9000", "https://s3.example.org", "https://s3.example.org:443", "http://[::1]:81", "http://a/b"],
)
@pytest.mark.parametrize("key", ["a/b.bin", "a b/é+&=~(1).bin"])
def test_a_link_is_botocores(endpoint, key):
    keys = {"access_key_id": "id/+=", "secret_access_key": "secret/+="}
    theirs = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="eu-west-9",
        aws_access_key_id=keys["access_key_id"],
        aws_secret_access_key=keys["secret_access_key"],
        config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
    ).generate_presigned_url(
        "get_object",
        Params={
            "Bucket": "bucket",
            "Key": key,
            "ResponseContentDisposition": ANSWER["response-content-disposition"],
            "ResponseContentType": ANSWER["response-content-type"],
        },
        ExpiresIn=600,
    )
    expected = dict(parse_qsl(urlsplit(theirs).query))
    at = datetime.strptime(expected["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    presigner = Presigner(endpoint, "bucket", region="eu-west-9", **keys)
    for _ in range(2):  # the second time by the key of the day that is known already
        ours = presigner.get(key, at=at, lifetime_s=600, response=ANSWER)
        assert dict(parse_qsl(urlsplit(ours).query)) == expected
        assert urlsplit(ours).path == urlsplit(theirs).path


def test_a_link_to_write_to_is_botocores():
    theirs = boto3.client(
        "s3",
        endpoint_url="http://127.0.0.1:9000",
        region_name="eu-west-9",
        aws_access_key_id="id",
        aws_secret_access_key="secret",
        config=Config(
            signature_version="s3v4", s3={"addressing_style": "path"}, request_checksum_calculation="when_required"
        ),
    ).generate_presigned_url(
        "put_object",
        Params={"Bucket": "bucket", "Key": "a/b", "ContentType": "image/png", "ContentLength": 7},
        ExpiresIn=600,
    )
    expected = dict(parse_qsl(urlsplit(theirs).query))
    at = datetime.strptime(expected["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    presigner = Presigner(
        "http://127.0.0.1:9000", "bucket", region="eu-west-9", access_key_id="id", secret_access_key="secret"
    )
    headers = {"content-type": "image/png", "content-length": "7"}
    ours = presigner.put("a/b", at=at, lifetime_s=600, headers=headers)
    assert dict(parse_qsl(urlsplit(ours).query)) == expected
