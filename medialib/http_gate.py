"""Who may talk to us (DESIGN §8): peer address, Host, Origin, Sec-Fetch-Site; addresses and TLS.

There are no tokens. A peer is let in by its address; a browser on an allowed machine that was sent
here by a foreign page is kept out by what it says of itself in Host, Origin and Sec-Fetch-Site.
"""

from __future__ import annotations

import contextlib
import re

from .base import MedialibError, UsageError
from .late import ipaddress, socket, ssl

# ipaddress.is_private means something else: it knows documentation networks, but not 100.64/10.
HOME_NETWORKS = (
    "127.0.0.0/8", "::1/128",  # loopback
    "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16",  # RFC 1918
    "169.254.0.0/16", "fe80::/10",  # link-local
    "fc00::/7",  # unique-local
    "100.64.0.0/10",  # carrier-grade NAT, used by private overlay networks
)
# No one can register a name under these, so no foreign page can point one at us.
HOME_DOMAINS = ("local", "lan", "home", "internal", "localdomain", "home.arpa")
NO_TLS = "this Python has no ssl module: https is not possible"
HOST_TEXT = re.compile(r"(\[[0-9a-f:.]+(?:%[0-9a-z._~-]+)?\]|[0-9a-z._-]+)(?::[0-9]{1,5})?")
KNOWN_HOSTS_KEPT = 256
# Connecting a datagram socket sends nothing; it only asks which of our addresses would be used.
ROUTE_PROBES = (
    "192.168.255.254", "10.255.255.254", "172.31.255.254", "100.127.255.254", "fd00::1",
)


def parse_address(text: str):
    """The address as ipaddress has it, without a zone; IPv4 mapped into IPv6 is the IPv4 address.

    Raises ValueError when the text is no address.
    """
    address = ipaddress.ip_address(text.split("%", 1)[0])
    return getattr(address, "ipv4_mapped", None) or address


def parse_networks(texts) -> tuple:
    """CIDR texts (or single addresses) as networks; UsageError names the first that is none."""
    networks = []
    for text in texts:
        try:
            networks.append(ipaddress.ip_network(text.strip(), strict=False))
        except ValueError as error:
            raise UsageError(f"{text!r} is not an address or network such as 10.0.0.0/8") from error
    return tuple(networks)


def format_address(host: str, port: int) -> str:
    """`host:port` as it stands in a URL: an IPv6 address gets its brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Gate:
    """Decides by address, Host, Origin and Sec-Fetch-Site whether a request may be answered.

    `networks`: CIDR texts that replace the private default. `host_names`: further names this
    machine is asked under. May be used by many threads; every setting is replaced as a whole.
    """

    def __init__(self, networks=None, host_names=()):
        self.networks = ()
        self.set_networks(HOME_NETWORKS if networks is None else networks)
        self.names = machine_names() | {name.lower().rstrip(".") for name in host_names}
        self._known_hosts = {}

    def set_networks(self, networks) -> None:
        """Replace the list of allowed networks (CIDR texts or addresses) while running."""
        self.networks = parse_networks(networks)

    def allow_peer(self, address) -> bool:
        """Is this peer (an ipaddress object, unwrapped) allowed? Asked before a byte is read."""
        return any(address in network for network in self.networks
                   if network.version == address.version)

    def check_host(self, host: str) -> bool:
        """May we be asked under this Host? Any port will do, a foreign name will not."""
        known = self._known_hosts.get(host)
        if known is None:
            known = self._is_our_name(host.lower())
            if len(self._known_hosts) >= KNOWN_HOSTS_KEPT:
                self._known_hosts = {}
            self._known_hosts[host] = known
        return known

    def _is_our_name(self, host: str) -> bool:
        match = HOST_TEXT.fullmatch(host)
        if match is None:
            return False
        name = match.group(1)
        if name.rstrip(".") in self.names:
            return True
        with contextlib.suppress(ValueError):
            parse_address(name.strip("[]"))
            return True
        return False

    def refusal(self, headers: dict, *, tls: bool) -> tuple | None:
        """(status, error, detail) for a request that came from somewhere else, or None."""
        host = headers.get("host")
        if host is not None and not self.check_host(host):
            return (421, "not a name of this machine",
                    "ask by address, or start with --host-name NAME to allow the name")
        origin = headers.get("origin")
        if origin is not None:
            scheme = "https" if tls else "http"
            if host is None or origin.lower() != f"{scheme}://{host.lower()}":
                return (403, "foreign origin", "pages of other sites may not ask here")
        if headers.get("sec-fetch-site", "none").lower() not in ("none", "same-origin"):
            return (403, "foreign site", "pages of other sites may not ask here")
        return None


def machine_names() -> frozenset:
    """The names this machine is known by at home, lower-case; found without asking any server."""
    full = socket.gethostname().lower().rstrip(".")
    label = full.split(".", 1)[0]
    names = {"localhost"}
    if label:
        names |= {full, label}
        names |= {f"{label}.{domain}" for domain in (*HOME_DOMAINS, *_search_domains())}
    return frozenset(names)


def _search_domains() -> list:
    """The domains in which this machine looks up short names."""
    domains = []
    with contextlib.suppress(OSError), open("/etc/resolv.conf", encoding="latin-1") as lines:
        for line in lines:
            words = line.lower().split()
            if words and words[0] in ("search", "domain"):
                domains += [word.strip(".") for word in words[1:7] if word.strip(".")]
    return domains


def own_addresses() -> list:
    """This machine's addresses as texts, the one to paste first; sends no packet.

    IPv4 comes before IPv6, since people can type it; then what lies in a home network; then what
    is on a route, before what is merely there.
    """
    found = [_route_address(target) for target in ROUTE_PROBES]
    found += _linux_addresses()
    networks = parse_networks(HOME_NETWORKS[2:])
    kept = []
    for text in found:
        with contextlib.suppress(ValueError):
            address = parse_address(text)
            if address.is_loopback or address.is_link_local or address.is_unspecified:
                continue
            kept.append(str(address))
    return sorted(dict.fromkeys(kept), key=lambda text: (":" in text, _is_foreign(text, networks)))


def _is_foreign(text: str, networks: tuple) -> bool:
    address = parse_address(text)
    return not any(address in network for network in networks if network.version == address.version)


def _route_address(target: str) -> str:
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((target, 9))
            return probe.getsockname()[0]
    except OSError:
        return ""


def _linux_addresses() -> list:
    found = []
    last = ""
    with contextlib.suppress(OSError), open("/proc/net/fib_trie", encoding="ascii") as lines:
        for line in lines:
            words = line.split()
            if words[:1] == ["|--"]:
                last = words[1]
            elif words[:3] == ["/32", "host", "LOCAL"]:
                found.append(last)
    with contextlib.suppress(OSError), open("/proc/net/if_inet6", encoding="ascii") as lines:
        found += [str(ipaddress.IPv6Address(int(line.split()[0], 16))) for line in lines]
    return found


def tls_server_context(certfile: str, keyfile: str | None):
    """A TLS context for serving, or MedialibError saying which file is wrong."""
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(certfile, keyfile, password=_refuse_password)
    except ImportError as error:  # small Pythons of routers and NAS boxes
        raise MedialibError(NO_TLS) from error
    except (OSError, ValueError) as error:
        raise MedialibError(
            f"cannot use the certificate {certfile} with the key {keyfile or certfile}: {error}"
        ) from error
    return context


def _refuse_password() -> str:
    raise ValueError("the key is protected by a password")


def tls_client_context(cafile: str | None):
    """A TLS context that checks the host's certificate, against `cafile` where it is given."""
    try:
        return ssl.create_default_context(cafile=cafile)
    except ImportError as error:
        raise MedialibError(NO_TLS) from error
    except (OSError, ValueError) as error:
        raise MedialibError(f"cannot use the certificates in {cafile}: {error}") from error
