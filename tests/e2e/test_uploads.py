"""Pictures that come before their job."""

import pytest

pytestmark = [pytest.mark.xdist_group("e2e"), pytest.mark.timeout(480)]


def test_a_picture_is_sent_by_a_link_to_the_store_itself(client, samples):
    made = client.upload_by_link(samples.content[0])
    assert (made.state, made.kind) == ("ready", "image")
    assert client.read_upload(made.id) == made
    client.delete_upload(made.id)
