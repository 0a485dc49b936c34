"""Which addresses a webhook may reach, decided when the connection is made and not before.

A name can point elsewhere at the next look, so checking a URL when a job is submitted only serves good error messages.
What protects the inside is `GuardedBackend`: it resolves the name itself, refuses unless every answer is permitted, and
connects to one of the addresses it has just checked, while TLS and the Host header keep the name.

Permitted: public addresses by https on port 443; and whatever the operator lists in WEBHOOK_ALLOW_CIDRS, by http or
https on any port.
"""

from __future__ import annotations

import re
import socket
import time
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpcore

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Sequence

    from api.settings import Network

    Address = IPv4Address | IPv6Address
    Resolver = Callable[[str, int], Sequence[str]]

MAX_URL_LENGTH = 2000
DEFAULT_PORTS = {"https": 443, "http": 80}

_HEXADECIMAL = re.compile(r"0x[0-9a-f]*")
_NOT_PUBLIC_V4 = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8",  # this host on this network
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local, with the metadata services of clouds
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)
_GLOBAL_V6 = ip_network("2000::/3")
"""Of IPv6 only global unicast can be public; loopback, ULA, link-local, multicast and NAT64 lie outside it."""
_NOT_PUBLIC_V6 = tuple(
    ip_network(text)
    for text in (
        "2001::/23",  # Teredo, benchmarking, ORCHID: protocol assignments
        "2001:db8::/32",
        "2002::/16",  # 6to4: wraps an IPv4 address
        "3fff::/20",
    )
)


class TargetRefused(Exception):
    """A webhook may not go there; the message says why and is fit for the caller's eyes."""


@dataclass(frozen=True, slots=True)
class Target:
    """A receiver's URL, taken apart once, so that what is checked is what is used."""

    scheme: str
    host: str
    port: int
    path: str
    """Path and query."""

    @property
    def address(self) -> Address | None:
        """The host, if it is a literal address and not a name."""
        try:
            return ip_address(self.host)
        except ValueError:
            return None


def parse_target(url: str) -> Target:
    """Take a URL apart.

    Raises:
        TargetRefused: it is not an http(s) URL of visible ASCII without user name, password and fragment, or it hides
            an address.
    """
    if len(url) > MAX_URL_LENGTH:
        raise TargetRefused(f"the URL is longer than {MAX_URL_LENGTH} characters")
    if not all("!" <= character <= "~" for character in url) or "\\" in url:
        raise TargetRefused("the URL holds characters that must be percent-encoded")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise TargetRefused(f"the URL cannot be read: {error}") from error
    if parts.scheme not in DEFAULT_PORTS:
        raise TargetRefused("the URL must begin with https://")
    if parts.username is not None or parts.password is not None:
        raise TargetRefused("the URL must not hold a user name or password")
    if parts.fragment:
        raise TargetRefused("the URL must not hold a fragment")
    if not parts.hostname:
        raise TargetRefused("the URL names no host")
    if "[" in parts.netloc and ":" not in parts.hostname:
        raise TargetRefused("only an IPv6 address stands in brackets")
    if _looks_like_a_number(parts.hostname):
        raise TargetRefused("write the address as four decimal numbers with full stops between them, or use a name")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, parts.hostname, DEFAULT_PORTS[parts.scheme] if port is None else port, path)


def _looks_like_a_number(host: str) -> bool:
    """Say whether a host is an IPv4 address in one of the spellings of inet_aton: `127.1`, `0x7f.1`, `2130706433`.

    The URL standard (WHATWG, "ends in a number") reads any host as an address whose last label is a number.
    """
    last = host.removesuffix(".").rpartition(".")[2]
    if not (last.isdecimal() or _HEXADECIMAL.fullmatch(last)):
        return False
    try:
        ip_address(host)
    except ValueError:
        return True
    return False


def check_at_submit(url: str, allow: Iterable[Network]) -> None:
    """Refuse early what would be refused at every connection; a name is not looked up here.

    Raises:
        TargetRefused: the URL can never be delivered to.
    """
    target, allow = parse_target(url), tuple(allow)
    if target.address is not None:
        check_address(target.address, target, allow)
    elif not allow:
        _check_public_way(target)


def check_address(address: Address, target: Target, allow: Sequence[Network]) -> None:
    """Refuse an address that is neither public nor listed.

    Raises:
        TargetRefused: it is not permitted.
    """
    plain = _unwrapped(address)
    if any(plain in network for network in allow if network.version == plain.version):
        return
    _check_public_way(target)
    if not _is_public(plain):
        raise TargetRefused(f"{target.host} is not a public address")


def resolve_all(host: str, port: int) -> list[str]:
    """Look a name up; returns every address, of both families.

    Raises:
        OSError: the name cannot be resolved.
    """
    return [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


class GuardedBackend(httpcore.NetworkBackend):
    """Connects to one target, if every address of its name is permitted, until a deadline."""

    def __init__(self, target: Target, *, allow: Sequence[Network], deadline: float, resolve: Resolver) -> None:
        self._target = target
        self._allow = allow
        self._deadline = deadline
        self._resolve = resolve
        self._inner = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Resolve, check all answers, connect to the first that accepts."""
        try:
            addresses = [ip_address(text.split("%", 1)[0]) for text in self._resolve(host, port)]
        except (OSError, ValueError) as error:
            raise httpcore.ConnectError(f"cannot resolve {host}: {error}") from error
        for address in addresses:
            check_address(address, self._target, self._allow)
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in addresses:
            try:
                stream = self._inner.connect_tcp(
                    str(address),
                    port,
                    timeout=_left(self._deadline, timeout),
                    local_address=local_address,
                    socket_options=socket_options,
                )
                return DeadlineStream(stream, self._deadline)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure


class DeadlineStream(httpcore.NetworkStream):
    """A connection whose every wait ends at one deadline, so that a receiver that drips bytes gains nothing."""

    def __init__(self, inner: httpcore.NetworkStream, deadline: float) -> None:
        self._inner = inner
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read some bytes before the deadline."""
        return self._inner.read(max_bytes, _left(self._deadline, timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write all bytes before the deadline."""
        self._inner.write(buffer, _left(self._deadline, timeout))

    def close(self) -> None:
        """Close the connection."""
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """Speak TLS from here on, before the deadline."""
        stream = self._inner.start_tls(ssl_context, server_hostname, _left(self._deadline, timeout))
        return DeadlineStream(stream, self._deadline)

    def get_extra_info(self, info: str) -> Any:  # noqa: ANN401 - httpcore's signature
        """Return what the connection knows of itself."""
        return self._inner.get_extra_info(info)


def _left(deadline: float, timeout: float | None) -> float:
    """Return the seconds until the deadline (monotonic clock), at most `timeout`."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("the delivery took too long")
    return left if timeout is None else min(left, timeout)


def _check_public_way(target: Target) -> None:
    if target.scheme != "https" or target.port != DEFAULT_PORTS["https"]:
        raise TargetRefused("a public address is only reached by https on port 443")


def _unwrapped(address: Address) -> Address:
    """Return the IPv4 address inside an IPv4-mapped one."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_V4)
    return address in _GLOBAL_V6 and not any(address in network for network in _NOT_PUBLIC_V6)
