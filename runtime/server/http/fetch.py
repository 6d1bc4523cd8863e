"""Files that a request names by URL: refused, unless the server was started with hosts that it may ask.

What can go wrong is that a stranger makes this server read what only this server can reach. So: https alone, the
standard port, hosts that were named at start; every address that a name resolves to must be public, and the connection
goes to the very address that was checked; each redirect is a new URL with all of this before it; size and time end.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import socket
import ssl
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any

import httpcore

from fluxtalk.errors import InputError
from fluxtalk.runtime.server.http.url_names import host_name, is_url

MAX_BYTES = 20 << 20
SECONDS = 10.0
"""Seconds from the first lookup to the last byte, redirects included."""
MAX_REDIRECTS = 3
_MAX_FETCHES = 8
"""Files in memory, or on their way, at a time."""
_PORT = 443
_KINDS = ("image", "audio")
_REDIRECTS = (301, 302, 303, 307, 308)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_PRINTABLE = re.compile(r"[\x21-\x7e]+")

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""A host and a port to all of its addresses."""


class Fetcher:
    """Reads files of allowed hosts. It takes no proxy and no credentials from the environment.

    Args:
        hosts: names, exactly as URLs write them; none: nothing is fetched.
        resolve: looks up the addresses of a host.
        network: connects to an address.
        tls: trusted authorities; None takes the system's authorities.
        seconds: time of one file, as in `SECONDS`.
        max_bytes: size of one file.

    Raises:
        UsageError: a host is not the name of a host.
    """

    def __init__(
        self,
        hosts: Sequence[str],
        resolve: Resolver | None = None,
        network: httpcore.AsyncNetworkBackend | None = None,
        tls: ssl.SSLContext | None = None,
        seconds: float = SECONDS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._hosts = frozenset(host_name(host) for host in hosts)
        self._network = CheckedNetwork(resolve or system_resolve, network)
        self._tls = tls if tls is not None or not hosts else ssl.create_default_context()
        self._seconds = seconds
        self._max_bytes = max_bytes
        self._slots = asyncio.Semaphore(_MAX_FETCHES)

    @contextlib.asynccontextmanager
    async def fetched(self, kind: str, values: Sequence[Any]) -> AsyncIterator[Sequence[Any]]:
        """Give the values of items, with bytes in the place of URLs; hold it until they are decoded.

        A text that is a URL is a text.

        Raises:
            InputError: a URL is not allowed, or gives no file.
        """
        if not self._hosts or kind not in _KINDS or not any(is_url(value) for value in values):
            yield values
            return
        async with self._slots:
            yield [await self.fetch(value) if is_url(value) else value for value in values]

    async def fetch(self, url: str) -> bytes:
        """Read the file of a URL.

        Raises:
            InputError: the URL is not allowed, or gives no file.
        """
        try:
            async with asyncio.timeout(self._seconds):
                return await self._follow(url)
        except TimeoutError:
            raise InputError(f"The URL did not give its file within {self._seconds:g} s.") from None
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError) as error:
            raise InputError(f"The URL could not be read ({type(error).__name__}); send the file itself.") from None

    async def _follow(self, url: str) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            target = self._checked(url)
            async with (
                httpcore.AsyncConnectionPool(
                    ssl_context=self._tls, max_connections=1, http2=False, network_backend=self._network
                ) as pool,
                pool.stream(
                    "GET",
                    target,
                    headers={"Host": target.host.decode("ascii"), "Accept": "*/*", "Accept-Encoding": "identity"},
                ) as response,
            ):
                headers = {name.lower(): value.decode("latin-1") for name, value in response.headers}
                if response.status in _REDIRECTS and b"location" in headers:
                    url = _redirected(url, headers[b"location"])
                    continue
                if response.status != 200:
                    raise InputError(f"The URL answered {response.status}, and not 200: send the file itself.")
                return await self._read(response, headers)
        raise InputError(f"The URL redirects more than {MAX_REDIRECTS} times; give the last one.")

    def _checked(self, url: str) -> httpcore.URL:
        """Check a URL.

        Raises:
            InputError: this URL is not allowed.
        """
        try:
            parts = urllib.parse.urlsplit(url)
            host, port = (parts.hostname or "").rstrip("."), parts.port
        except ValueError:
            host, port, parts = "", None, urllib.parse.SplitResult("", "", "", "", "")
        if not host or not _PRINTABLE.fullmatch(url) or parts.username is not None or parts.password is not None:
            raise InputError("A URL must be https://HOST/PATH, percent-encoded and without a user; this one is not.")
        if parts.scheme != "https" or port not in (None, _PORT):
            raise InputError(f"Only https URLs on port {_PORT} are fetched, redirects included.")
        if host not in self._hosts:
            raise InputError(f"URLs of {host[:80]} are not fetched here; the server's --allow-url names the hosts.")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return httpcore.URL(scheme=b"https", host=host.encode("ascii"), port=_PORT, target=path.encode("ascii"))

    async def _read(self, response: httpcore.Response, headers: dict[bytes, str]) -> bytes:
        if headers.get(b"content-encoding", "identity").lower() != "identity":
            raise InputError("The URL gives a compressed answer, which is not taken; send the file itself.")
        declared = headers.get(b"content-length", "0")
        too_large = InputError(f"The file of a URL has at most {self._max_bytes:,} bytes; send a smaller one.")
        if declared.isdecimal() and int(declared) > self._max_bytes:
            raise too_large
        content = bytearray()
        async for chunk in response.aiter_stream():
            content += chunk
            if len(content) > self._max_bytes:
                raise too_large
        return bytes(content)


def _redirected(url: str, location: str) -> str:
    """Resolve a redirect; `Fetcher` checks the new URL as it did the first.

    Raises:
        InputError: the location is not a URL.
    """
    try:
        return urllib.parse.urljoin(url, location)
    except ValueError:
        raise InputError("The URL redirects to something that is not a URL; send the file itself.") from None


class CheckedNetwork(httpcore.AsyncNetworkBackend):
    """Network that connects to a name if all of its addresses are public, and to one of those that were checked.

    Args:
        resolve: looks up the addresses of a host.
        network: connects to an address; None is asyncio's.
    """

    def __init__(self, resolve: Resolver, network: httpcore.AsyncNetworkBackend | None = None) -> None:
        self._resolve = resolve
        self._network = network if network is not None else httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address that takes a connection.

        Raises:
            InputError: the name has no address, or one that is not public.
            httpcore.ConnectError: none of them takes a connection.
        """
        addresses = await self._resolve(host, port)
        if not addresses or not all(is_public(address) for address in addresses):
            raise InputError(f"The host {host} has no address, or one that is not public; it is not asked.")
        error: Exception = httpcore.ConnectError("no address")
        for address in addresses:
            try:
                return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as failed:
                error = failed
        raise error

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        """Refuse: a URL names a host."""
        raise InputError("A URL names a host.")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


async def system_resolve(host: str, port: int) -> list[str]:
    """Look up all addresses of a name; empty if the system knows none."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def is_public(address: str) -> bool:
    """True if an address belongs to the public internet, whatever notation hides it."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.scope_id is not None:
            return False
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and (ip in _NAT64 or int(ip) < 1 << 32):
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)
