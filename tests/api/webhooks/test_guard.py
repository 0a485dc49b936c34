"""Server-side request forgery: where a webhook may go, at submission and when the connection is made."""

import time
from ipaddress import ip_address, ip_network

import httpcore
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.webhooks.guard import (
    GuardedBackend,
    TargetRefused,
    check_address,
    check_at_submit,
    parse_target,
    resolve_all,
)

PUBLIC = ["93.184.215.14", "8.8.8.8", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "100.63.255.255", "172.32.0.1"]
INSIDE = [
    "0.0.0.0",  # noqa: S104 - an address to refuse
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.127.255.255",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.8",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.7",
    "203.0.113.7",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:10.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "3fff::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fec0::1",
    "ff02::1",
]
REFUSED = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "::/128",
    "::1/128",
    "::/96",  # IPv4-compatible
    "::ffff:0:0:0/96",  # IPv4-translated
    "64:ff9b::/96",  # NAT64
    "64:ff9b:1::/48",
    "100::/64",  # discard only
    "100:0:0:1::/64",
    "2001::/32",  # Teredo
    "2001:2::/48",
    "2001:10::/28",
    "2001:20::/28",
    "2001:db8::/32",
    "2002::/16",
    "3fff::/20",
    "5f00::/16",  # segment routing
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
]
"""Every range of IANA's special-purpose registries, and multicast, that no webhook may reach."""
EDGES = {
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "169.253.255.255",
}
EDGES |= {
    "169.255.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "192.167.255.255",
    "192.169.0.0",
    "198.17.255.255",
    "198.20.0.0",
}
EDGES |= {
    "1.0.0.0",
    "223.255.255.255",
    "2001:200::",
    "2001:db7:ffff::",
    "2001:db9::",
    "2003::",
    "3ffe:ffff::",
    "2000::1",
}
"""Addresses right beside those ranges."""
TARGET = parse_target("https://receiver.example/hook")


def backend(answers, *, allow=(), target=TARGET, inner=None):
    made = GuardedBackend(
        target,
        allow=tuple(ip_network(text) for text in allow),
        deadline=time.monotonic() + 5,
        resolve=lambda *_: answers,
    )
    made._inner = inner or Recorder()
    return made


class Recorder:
    """Stands where sockets would be opened, and notes which."""

    def __init__(self, refuse=()):
        self.opened = []
        self._refuse = refuse

    def connect_tcp(self, host, port, **_):
        self.opened.append((host, port))
        if host in self._refuse:
            raise httpcore.ConnectError("refused")
        return httpcore.NetworkStream()


@pytest.mark.parametrize("address", INSIDE)
def test_an_inside_address_is_never_connected_to(address):
    made = backend([address])
    with pytest.raises(TargetRefused, match="not a public address"):
        made.connect_tcp("receiver.example", 443)
    assert made._inner.opened == []


@pytest.mark.parametrize("text", REFUSED)
def test_a_refused_range_is_refused_from_its_first_address_to_its_last(text):
    network = ip_network(text)
    for address in {network[0], network[-1], network[network.num_addresses // 2]}:
        made = backend([str(address)])
        with pytest.raises(TargetRefused, match="not a public address"):
            made.connect_tcp("receiver.example", 443)
        assert made._inner.opened == []
        if address.version == 4:
            with pytest.raises(TargetRefused):
                check_address(ip_address(f"::ffff:{address}"), TARGET, ())


@pytest.mark.parametrize("address", sorted(EDGES))
def test_the_neighbours_of_refused_ranges_are_public(address):
    check_address(ip_address(address), TARGET, ())


@given(st.ip_addresses())
def test_nothing_passes_that_python_does_not_call_global(address):
    """Another list of the same ranges, kept by others."""
    try:
        check_address(address, TARGET, ())
    except TargetRefused:
        return
    assert address.is_global
    assert not address.is_multicast


@given(st.ip_addresses(v=4))
def test_an_address_inside_an_address_is_judged_as_the_inner_one(address):
    def verdict(text):
        try:
            check_address(ip_address(text), TARGET, ())
        except TargetRefused:
            return "refused"
        return "passed"

    assert verdict(f"::ffff:{address}") == verdict(str(address))
    for wrapped in (f"::{address}", f"64:ff9b::{address}", f"::ffff:0:{address}"):
        assert verdict(wrapped) == "refused"


def test_an_allowed_network_does_not_open_what_wraps_it():
    """NAT64 and 6to4 lead elsewhere than their text says."""
    allow = (ip_network("10.0.0.0/8"),)
    for wrapped in ("64:ff9b::10.0.0.1", "2002:a00:1::", "::10.0.0.1"):
        with pytest.raises(TargetRefused):
            check_address(ip_address(wrapped), TARGET, allow)


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_connected_to_by_number(address):
    made = backend([address])
    made.connect_tcp("receiver.example", 443)
    assert made._inner.opened == [(address, 443)]


@pytest.mark.parametrize("answers", [["8.8.8.8", "127.0.0.1"], ["8.8.8.8", "::1"], ["fe80::1%eth0", "8.8.8.8"]])
def test_one_inside_answer_spoils_all(answers):
    made = backend(answers)
    with pytest.raises(TargetRefused):
        made.connect_tcp("receiver.example", 443)
    assert made._inner.opened == []


def test_a_name_that_moves_inside_between_two_attempts_is_refused_the_second_time():
    answers = iter([["8.8.8.8"], ["127.0.0.1"]])
    made = GuardedBackend(TARGET, allow=(), deadline=time.monotonic() + 5, resolve=lambda *_: next(answers))
    made._inner = Recorder()
    made.connect_tcp("receiver.example", 443)
    with pytest.raises(TargetRefused):
        made.connect_tcp("receiver.example", 443)
    assert made._inner.opened == [("8.8.8.8", 443)]


def test_the_next_address_is_tried_when_one_does_not_answer():
    recorder = Recorder(refuse={"2606:4700::1"})
    backend(["2606:4700::1", "8.8.8.8"], inner=recorder).connect_tcp("receiver.example", 443)
    assert recorder.opened == [("2606:4700::1", 443), ("8.8.8.8", 443)]


@pytest.mark.parametrize("answers", [[], ["not an address"]])
def test_a_name_without_a_usable_address_cannot_be_connected_to(answers):
    with pytest.raises(httpcore.ConnectError):
        backend(answers).connect_tcp("receiver.example", 443)


@pytest.mark.parametrize(
    "url", ["http://receiver.example/", "https://receiver.example:8443/", "https://receiver.example:22/"]
)
def test_public_addresses_are_reached_by_https_on_443_only(url):
    with pytest.raises(TargetRefused, match="https on port 443"):
        backend(["8.8.8.8"], target=parse_target(url)).connect_tcp("receiver.example", 443)


def test_a_listed_network_is_reached_by_any_way_and_only_it():
    target = parse_target("http://lan.example:8080/")
    made = backend(["10.1.2.3"], allow=["10.1.0.0/16"], target=target)
    made.connect_tcp("lan.example", 8080)
    assert made._inner.opened == [("10.1.2.3", 8080)]
    for address in ("10.2.0.1", "127.0.0.1", "::ffff:10.2.0.1"):
        with pytest.raises(TargetRefused):
            backend([address], allow=["10.1.0.0/16"], target=target).connect_tcp("lan.example", 8080)
    backend(["::ffff:10.1.2.3"], allow=["10.1.0.0/16"], target=target).connect_tcp("lan.example", 8080)
    backend(["fd00::5"], allow=["fd00::/8", "10.1.0.0/16"], target=target).connect_tcp("lan.example", 8080)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "receiver.example/hook",
        "ftp://receiver.example/",
        "file:///etc/passwd",
        "gopher://receiver.example/",
        "https://",
        "https:///path",
        "https://user@receiver.example/",
        "https://user:word@receiver.example/",
        "https://:@receiver.example/",
        "https://receiver.example/#part",
        "https://receiver.example:99999/",
        "https://receiver.example:x/",
        "https://receiver.example/ space",
        "https://receiver.example/\r\nX-Injected: 1",
        "https://receiver.example\\@10.0.0.1/",
        "https://réceiver.example/",
        "https://[::1/",
        "https://receiver.example/" + "x" * 2000,
        *(f"https://{address if ':' not in address else f'[{address}]'}/" for address in INSIDE),
    ],
)
def test_a_url_that_can_never_work_is_refused_at_submission(url):
    with pytest.raises(TargetRefused):
        check_at_submit(url, ())


def test_a_name_is_not_looked_up_at_submission():
    check_at_submit("https://no-such-name.invalid/hook?a=1", ())
    check_at_submit("https://8.8.8.8/", ())
    check_at_submit("http://192.168.1.5:8080/", [ip_network("192.168.0.0/16")])


ODD = ("2130706433", "0x7f.1", "127.1", "0177.0.0.1", "0X7F000001")
"""The resolver of the C library reads these as 127.0.0.1."""


@pytest.mark.parametrize("host", [*ODD, "127.0.0.1.", "1.2.3", "256.1.1.1"])
def test_odd_ways_to_write_an_address_are_no_name(host):
    with pytest.raises(TargetRefused, match="four decimal numbers"):
        parse_target(f"https://{host}/")


@pytest.mark.parametrize("host", [*ODD, "localhost"])
def test_they_are_also_judged_by_what_they_resolve_to(host):
    for text in resolve_all(host, 443):
        with pytest.raises(TargetRefused):
            check_address(ip_address(text), TARGET, ())


@pytest.mark.parametrize("host", ["8.8.8.8", "3com.example", "example.x1", "1.2.3.4.example", "xn--0x7f-x.example"])
def test_a_name_may_hold_numbers(host):
    assert parse_target(f"https://{host}/").host == host
