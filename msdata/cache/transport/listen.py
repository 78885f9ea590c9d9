"""Chooses the address at which a node's service listens: one network's address, not all of them.

Other nodes learn the address from the folder that all nodes see, so it can be numeric and equals
the address at which the service listens. The service listens at all addresses only if the user says
so, or names a host that does not belong to this machine, as behind an address translation.
"""

from __future__ import annotations

import fcntl
import socket
import struct

from msdata.cache.tier import LOG
from msdata.errors import UsageError

LOOPBACK, EVERYWHERE = "127.0.0.1", "0.0.0.0"
# Of Linux's netdevice(7): the IPv4 address of an interface.
_SIOCGIFADDR = 0x8915
# Reserved for documentation: nothing is sent there, only the route to it is looked up.
_FAR_AWAY = ("192.0.2.1", 9)


def listen_address(listen: str | None, host: str | None) -> tuple[str, str]:
    """The address at which a service listens, and the one that it announces to other nodes.

    Args:
        listen: an address, host name or interface of this machine; None finds one.
        host: name or address to announce; None announces the listening address.

    Returns:
        IPv4 address to listen at, and name or address to announce.

    Raises:
        UsageError: `listen` does not belong to this machine.
    """
    if listen is not None:
        found = _of_interface(listen) or (_resolved(listen) if listen else None)
        if found is None or not _is_ours(found):
            raise UsageError(
                f"listen must be an IPv4 address or interface of this machine, got {listen!r}; "
                f"choose among {', '.join([*_interfaces(), EVERYWHERE])}"
            )
        return found, host or (socket.gethostname() if found == EVERYWHERE else found)
    if host is not None:
        found = _resolved(host)
        is_literal = found == host or host == "localhost"
        if found is not None and _is_ours(found) and (is_literal or not _is_loopback(found)):
            return found, host
        LOG.warning(
            "host %s does not resolve to an address of this machine: the cache's service "
            "listens at all addresses; choose one by --listen",
            host,
        )
        return EVERYWHERE, host
    found = _own_address()
    return found, (socket.gethostname() if found == EVERYWHERE else found)


def _own_address() -> str:
    """The address of this machine's host name; else the source address of its default route."""
    named = _resolved(socket.gethostname())
    if named is not None and _is_ours(named) and not _is_loopback(named):
        return named
    addresses = [found for found in map(_of_interface, _interfaces()) if found is not None]
    addresses = [found for found in addresses if not _is_loopback(found)]
    if not addresses:
        return LOOPBACK
    if len(addresses) == 1:
        return addresses[0]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_FAR_AWAY)
            return str(probe.getsockname()[0])
        except OSError:
            LOG.warning(
                "cannot tell which of the addresses %s other nodes reach: the cache's service "
                "listens at all of them; choose one by --listen",
                ", ".join(addresses),
            )
            return EVERYWHERE


def _interfaces() -> list[str]:
    return [name for _, name in socket.if_nameindex()]


def _of_interface(name: str) -> str | None:
    """IPv4 address of an interface; None if it has none."""
    if name not in _interfaces():
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        try:
            asked = struct.pack("256s", name.encode()[:15])
            return socket.inet_ntoa(fcntl.ioctl(made.fileno(), _SIOCGIFADDR, asked)[20:24])
        except OSError:
            return None


def _resolved(host: str) -> str | None:
    try:
        return socket.gethostbyname(host)
    except (OSError, UnicodeError):
        return None


def _is_loopback(address: str) -> bool:
    return address.startswith("127.")


def _is_ours(address: str) -> bool:
    """Whether this machine can listen there."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as made:
        try:
            made.bind((address, 0))
        except OSError:
            return False
    return True
