"""Every known spelling of an inside address, sent to the service as anybody would, and to a real sender."""

import uuid

import pytest

from api.settings import WebhookSettings
from api.webhooks.delivery import WebhookSender
from api.webhooks.repository import DueDelivery
from api.webhooks.signing import make_secret

REFUSED = [
    # loopback, in every spelling that some library reads
    "https://127.0.0.1/",
    "https://127.0.0.1./",
    "https://127.1/",
    "https://127.0.1/",
    "https://0/",
    "https://0.0.0.0/",
    "https://2130706433/",
    "https://017700000001/",
    "https://0x7f000001/",
    "https://0x7f.0.0.1/",
    "https://0X7F.1/",
    "https://0177.0.0.1/",
    "https://0177.0.0.01/",
    "https://127.0.0.0x1/",
    "https://127.000.000.001/",
    "https://0x7f.1./",
    "https://00000177.1/",
    "https://256.256.256.256/",
    "https://[::1]/",
    "https://[0:0:0:0:0:0:0:1]/",
    "https://[::]/",
    "https://[::ffff:127.0.0.1]/",
    "https://[::ffff:7f00:1]/",
    "https://[0:0:0:0:0:ffff:7f00:0001]/",
    "https://[::127.0.0.1]/",
    "https://[::ffff:0:127.0.0.1]/",
    "https://[64:ff9b::127.0.0.1]/",
    "https://[64:ff9b::7f00:1]/",
    "https://[2002:7f00:1::]/",
    "https://[2001:0:7f00:1::]/",
    "https://[::1%25lo]/",
    "https://[fe80::1%25eth0]/",
    # the inside, and what clouds tell at fixed addresses
    "https://10.0.0.1/",
    "https://172.16.0.1/",
    "https://192.168.0.1/",
    "https://100.64.0.1/",
    "https://169.254.169.254/latest/meta-data/",
    "https://2852039166/latest/meta-data/",
    "https://0xa9fea9fe/",
    "https://0xa9.0xfe.0xa9.0xfe/",
    "https://0251.0376.0251.0376/",
    "https://169.254.43518/",
    "https://[::ffff:169.254.169.254]/",
    "https://[fd00:ec2::254]/",
    "https://[fe80::a9fe:a9fe]/",
    "https://100.100.100.200/",
    "https://192.0.0.192/",
    "https://[fc00::1]/",
    "https://255.255.255.255/",
    "https://224.0.0.1/",
    "https://[ff02::1]/",
    # by other ways than https on port 443
    "http://receiver.example/",
    "http://8.8.8.8/",
    "https://8.8.8.8:8443/",
    "https://receiver.example:6379/",
    "https://receiver.example:22/",
    "https://receiver.example:0/",
    "https://receiver.example:-1/",
    "https://receiver.example:65536/",
    "https://receiver.example:443:80/",
    "file:///etc/passwd",
    "ftp://receiver.example/",
    "gopher://127.0.0.1:6379/_FLUSHALL",
    "dict://127.0.0.1:6379/info",
    "ldap://receiver.example/",
    "unix:///run/postgres.sock",
    "jar:https://receiver.example!/x",
    "data:text/plain,x",
    "javascript:alert(1)",
    "//receiver.example/",
    "/relative",
    "receiver.example",
    "https:receiver.example",
    "https:/receiver.example/",
    "https://",
    "https:///etc/passwd",
    "https://?x",
    # two readers, two hosts
    "https://receiver.example@127.0.0.1/",
    "https://127.0.0.1@receiver.example/",
    "https://a:b@receiver.example/",
    "https://receiver.example\\@127.0.0.1/",
    "https://127.0.0.1\\.receiver.example/",
    "https://receiver.example#@127.0.0.1/",
    "https://receiver.example /",
    "https://receiver.example\t/",
    "https://receiver.example\n/",
    "https://receiver.example/\r\nHost: 127.0.0.1",
    " https://receiver.example/",
    "https://receiver\u3002example/",
    "https://\u2460\u2461\u2466.\u24ea.\u24ea.\u2460/",
    "https://\uff11\uff12\uff17.\uff10.\uff10.\uff11/",
    "https://loc\u00adalhost/",
    "https://[::1/",
    "https://::1/",
    "https://[127.0.0.1]/",
    "https://[v1.x]/",
    "https://receiver.example/" + "x" * 2000,
]
LATER = [
    "https://localhost/",
    "https://LOCALHOST/",
    "https://localhost./",
    "https://no-such-name.invalid/",
    "https://%6c%6fcalhost/",
    "https://127.0.0.1.%2e/",
    "https://x..example.invalid/",
    f"https://{'a' * 70}.invalid/",
]
"""Names are looked up when the connection is made, and refused or not found then."""


def post(caller, url):
    return caller.post("/webhooks", json={"url": url})


@pytest.mark.parametrize("how", ["endpoint", "job"])
def test_every_spelling_of_the_inside_is_refused_by_field(how, caller):
    for url in REFUSED:
        if how == "endpoint":
            answer, pointer = post(caller, url), "/url"
        else:
            answer, pointer = caller.submit(params={"webhook_url": url}), "/params/webhook_url"
        assert answer.status_code == 422, url
        (error,) = answer.json()["errors"]
        assert error["pointer"] == pointer, url
        assert error["code"] in {"url_refused", "string_too_long"}, (url, error)
    assert caller.get("/webhooks").json()["items"] == []
    assert caller.get("/jobs").json()["items"] == []


def test_what_is_only_known_when_connecting_is_taken_at_first(caller):
    for url in (
        "https://receiver.example/hook?a=1",
        "https://8.8.8.8/",
        "https://xn--rceiver-bya.example/",
        *LATER[:4],
    ):
        assert post(caller, url).status_code == 201, url


@pytest.mark.parametrize("url", [*REFUSED, *LATER])
def test_no_spelling_gets_a_connection(url, monkeypatch):
    """Past the check at submission: as if an older service had let it through."""
    due = DueDelivery(
        id=uuid.uuid4(),
        url=url,
        body="{}",
        secrets=(make_secret(),),
        traceparent=None,
        job_id=None,
        endpoint_id=None,
        message="msg_1",
        attempt=1,
    )
    connected = []
    monkeypatch.setattr("httpcore.SyncBackend.connect_tcp", lambda *place, **_: connected.append(place))
    outcome = WebhookSender(WebhookSettings(timeout_s=5)).send(due)
    assert outcome.error
    assert connected == []
