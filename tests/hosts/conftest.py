"""One site for all tests of this folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.hosts.network import Network, NoNetwork
from tests.hosts.site import Site

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    network = Network()
    try:
        network.__enter__()
    except NoNetwork as reason:
        pytest.skip(str(reason))
    try:
        yield network
    finally:
        network.__exit__()


@pytest.fixture(scope="module")
def site(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(network, tmp_path_factory.mktemp("site")) as site:
        yield site
