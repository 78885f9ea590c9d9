"""A service to ask: where it is, how often it may be asked, how long it may take."""

from __future__ import annotations

import difflib
import ipaddress
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from msdata.catalog.build.recipe import read_toml
from msdata.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Service:
    """Settings of a service; the `[name]` table of the file for `--services`.

    Attributes:
        name: "ps1", "legacy", "unwise_me" or "hips2fits".
        base_url: what stands before the protocol's own file names; HTTPS, or of this machine.
        requests_per_s: the most that may arrive there in any second, from all threads together.
        connections: requests in flight at a time.
        connect_timeout_s: for a connection.
        read_timeout_s: longest silence within an answer.
        total_timeout_s: for a whole answer from when it is asked for, however it trickles; every
            try has as much.
        tries: attempts at a request before the object is left for a later run.
        backoff_s: mean wait after the first failure; doubled after each.
        max_wait_s: a service that asks to wait longer is left for a later run.
        max_outage_s: the run ends when the service has delivered nothing for so long.
    """

    name: str
    base_url: str
    requests_per_s: float
    connections: int = 4
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 60.0
    total_timeout_s: float = 180.0
    tries: int = 6
    backoff_s: float = 1.0
    max_wait_s: float = 600.0
    max_outage_s: float = 3600.0

    def __post_init__(self) -> None:
        _check_url(self.name, self.base_url)
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "str":
                continue
            is_whole = field.type == "int"
            if isinstance(value, bool) or not isinstance(value, int if is_whole else int | float):
                raise UsageError(
                    f"service {self.name}: {field.name} must be a number, got {value!r}"
                )
            if not 0 < value < math.inf:
                raise UsageError(f"service {self.name}: {field.name} must be > 0, got {value}")


def _check_url(name: str, url: Any) -> None:
    parts = urlsplit(url) if isinstance(url, str) else None
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(
            f"service {name}: base_url must be a URL such as https://host/path, got {url!r}"
        )
    if parts.query or parts.fragment or parts.username:
        raise UsageError(f"service {name}: base_url {url!r} must end with its path")
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise UsageError(
            f"service {name}: {url} is not HTTPS, so a host on the way could alter the pixels; "
            "write https://"
        )


def is_loopback(host: str) -> bool:
    """Whether a host is this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_services(path: Path | None) -> dict[str, Service]:
    """The services, with what a TOML file changes of them.

    Args:
        path: file with one table per service; None changes nothing.

    Raises:
        UsageError: it is not TOML, or names an unknown service or setting.
        StorageError: it cannot be read.
    """
    tables = {} if path is None else read_toml(path, "services file")
    found = dict(SERVICES)
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise UsageError(f"services file {path}: {name} must be a table; write [{name}]")
        change_service(found, name, table)
    return found


def change_service(services: dict[str, Service], name: str, changes: Mapping[str, Any]) -> None:
    """Gives one of several services other settings, in place.

    Raises:
        UsageError: the service or a setting does not exist, or a value is invalid.
    """
    if name not in SERVICES:
        raise UsageError(
            f"unknown service {name!r}; known are {', '.join(SERVICES)}{_hint(name, SERVICES)}"
        )
    services[name] = changed(services[name], changes)


def changed(service: Service, changes: Mapping[str, Any]) -> Service:
    """The service with other settings.

    Raises:
        UsageError: a setting does not exist, or has no sensible value.
    """
    known = [field.name for field in fields(service) if field.name != "name"]
    for key in changes:
        if key not in known:
            raise UsageError(
                f"service {service.name} has no setting {key!r}; it has {', '.join(known)}"
                f"{_hint(key, known)}"
            )
    return replace(service, **changes)


def _hint(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


# Rates are a courtesy of this program: none of the services publishes a limit. Agree on more with
# its operators before asking for more.
SERVICES = {
    service.name: service
    for service in (
        Service(name="ps1", base_url="https://ps1images.stsci.edu/cgi-bin", requests_per_s=5.0),
        Service(name="legacy", base_url="https://www.legacysurvey.org/viewer", requests_per_s=3.0),
        Service(name="unwise_me", base_url="https://unwise.me", requests_per_s=1.0),
        Service(
            name="hips2fits",
            base_url="https://alasky.cds.unistra.fr/hips-image-services",
            requests_per_s=2.0,
        ),
    )
}
