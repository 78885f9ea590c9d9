"""At which address of a node its service is reached: that of one network, not of all.

Other nodes learn the address from the folder that all of them see, so it can be a number, and what
is told is what is listened at. All addresses are listened at only where the user says so, or names
a host that is none of this machine's, as behind an address translation.
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
# Reserved for documentation: nothing is sent there, only the way to it is looked up.
_FAR_AWAY = ("192.0.2.1", 9)


def listen_address(listen: str | None, host: str | None) -> tuple[str, str]:
    """Where a service listens, and under which name or address others reach it.

    Args:
        listen: an address, a host's name or an interface of this machine; None finds one.
        host: name or address that others are told; None tells them where it listens.

    Returns:
        IPv4 address to listen at, and what to tell.

    Raises:
        UsageError: `listen` is nothing of this machine's.
    """
    if listen is not None:
        found = _of_interface(listen) or (_resolved(listen) if listen else None)
        if found is None or not _is_ours(found):
            raise UsageError(
                f"listen must be an IPv4 address or interface of this machine, got {listen!r}; "
                f"there are {', '.join([*_interfaces(), EVERYWHERE])}"
            )
        return found, host or (socket.gethostname() if found == EVERYWHERE else found)
    if host is not None:
        found = _resolved(host)
        is_literal = found == host or host == "localhost"
        if found is not None and _is_ours(found) and (is_literal or not _is_loopback(found)):
            return found, host
        LOG.warning(
            "host %s is not an address of this machine as it knows them: the cache's service "
            "listens at all of its addresses; choose one by --listen",
            host,
        )
        return EVERYWHERE, host
    found = _own_address()
    return found, (socket.gethostname() if found == EVERYWHERE else found)


def _own_address() -> str:
    """What this machine's name stands for; else where its way out begins."""
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
                "none of the addresses %s is known to be the one that other nodes reach: the "
                "cache's service listens at all of them; choose one by --listen",
                ", ".join(addresses),
            )
            return EVERYWHERE


def _interfaces() -> list[str]:
    return [name for _, name in socket.if_nameindex()]


def _of_interface(name: str) -> str | None:
    """IPv4 address of an interface; None where it has none."""
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
