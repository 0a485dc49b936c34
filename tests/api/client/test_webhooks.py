"""Webhooks and keys by the Python client, against the real API process."""

import pytest

from api.client import Client, ServiceRefused

pytestmark = pytest.mark.xdist_group("client")


def test_a_webhook_from_its_making_to_its_end(client):
    made = client.create_webhook("https://example.org/hook", events=["job.failed"], description="the gallery")
    assert made.secret.startswith("whsec_")
    assert client.webhooks() == [client.webhook(made.id)]
    assert client.webhook(made.id).secret is None
    changed = client.change_webhook(made.id, description="the shop", state="disabled")
    assert (changed.description, changed.state, changed.events) == ("the shop", "disabled", ("job.failed",))
    assert client.enable_webhook(made.id).state == "enabled"
    assert client.rotate_webhook_secret(made.id).secret != made.secret
    ping = client.ping_webhook(made.id)
    assert [(each.id, each.type) for each in client.deliveries(made.id)] == [(ping.id, "webhook.ping")]
    assert list(client.deliveries(made.id, state="delivered")) == []
    assert client.delivery(ping.id).url == "https://example.org/hook"
    again = client.replay_delivery(ping.id)
    assert again.replay_of == ping.id
    assert [each.id for each in client.deliveries(made.id, page_size=1)] == [again.id, ping.id]
    client.delete_webhook(made.id)
    assert client.webhooks() == []


def test_a_key_from_its_making_to_its_end(client, url):
    made = client.create_key(label="CI", scopes=["webhooks:read"], expires_in_days=3)
    assert made.key not in repr(made)
    with Client(url, made.key) as limited:
        assert limited.webhooks() == []
        with pytest.raises(ServiceRefused) as refusal:
            limited.create_webhook("https://example.org/hook")
        assert refusal.value.problem["missing_scopes"] == ["webhooks:write"]
        new = client.rotate_key(made.id, overlap_s=60)
        assert limited.webhooks() == []
    assert client.key(made.id).rotated_to == new.id
    client.revoke_key(new.id)
    assert [(key.id, key.state) for key in client.keys(ended=True)][:2] == [(new.id, "revoked"), (made.id, "rotated")]
    assert len(client.keys()) == 2
