"""Every family of sockets and every destination: nobody is reached, and what no training needs does not exist."""

from collections.abc import Iterator

from tests.security.case import BLOCKED, NO_FILE, UNREACHABLE, Attack, Family, Probe, errors, named, value

ABSENT = BLOCKED | errors("EAFNOSUPPORT", "EPROTONOSUPPORT", "ESOCKTNOSUPPORT", "EACCES", "EINVAL", "ENODEV")
"""The family is refused, by the filter or because this kernel has none."""
PORTS = {
    "ssh": 22,
    "DNS": 53,
    "PostgreSQL": 5432,
    "Docker over TCP": 2375,
    "the api": 8000,
    "Kafka": 9092,
    "the bait": 0,
}

FAMILIES = {
    "AF_AX25": 3,
    "AF_IPX": 4,
    "AF_APPLETALK": 5,
    "AF_X25": 9,
    "AF_KEY": 15,
    "AF_NETLINK": 16,
    "AF_PACKET": 17,
    "AF_RDS": 21,
    "AF_PPPOX": 24,
    "AF_LLC": 26,
    "AF_IB": 27,
    "AF_CAN": 29,
    "AF_TIPC": 30,
    "AF_BLUETOOTH": 31,
    "AF_ALG": 38,
    "AF_NFC": 39,
    "AF_VSOCK": 40,
    "AF_KCM": 41,
    "AF_QIPCRTR": 42,
    "AF_SMC": 43,
    "AF_XDP": 44,
    "AF_MCTP": 45,
}
"""Linux's families (include/linux/socket.h) but AF_UNIX, AF_INET and AF_INET6, which libraries need to exist."""


def families() -> Iterator[Probe]:
    """Every family by every usual kind."""
    for name, number in FAMILIES.items():
        yield Probe(
            name=f"a socket of {name}",
            code=f"""
            last = None
            for kind in (1, 2, 3, 5):
                try:
                    return socket.socket({number}, kind).fileno() and (kind, "made")
                except OSError as problem:
                    last = last if last and last.errno in (1, 38) else problem
            raise last
            """,
            outcomes=ABSENT,
        )
    for name, family, kind, protocol in (
        ("raw IPv4", 2, 3, 1),
        ("raw IPv6", 10, 3, 58),
        ("ping", 2, 2, 1),
        ("SCTP", 2, 1, 132),
        ("DCCP", 2, 6, 33),
        ("UDP-Lite", 2, 2, 136),
        ("MPTCP", 2, 1, 262),
    ):
        harmless = value("made") if name in ("UDP-Lite", "MPTCP", "SCTP") else frozenset[str]()  # without any network
        code = f"return socket.socket({family}, {kind}, {protocol}) and 'made'"
        yield Probe(name=f"a socket for {name}", code=code, outcomes=ABSENT | harmless)


def destinations() -> Iterator[Probe]:
    """Every address of the host and of the world, by the ports that matter."""
    for service, port in PORTS.items():
        yield Probe(
            name=f"{service} at every address of the host",
            code=f"""
            last = None
            for address in os.environ["HOST_ADDRESSES"].split():
                try:
                    where = (address, {port} or int(os.environ["HOST_PORT"]))
                    socket.create_connection(where, timeout=0.5)
                    return "reached " + address
                except OSError as problem:
                    last = problem
            raise last
            """,
            outcomes=UNREACHABLE | {"TimeoutError"},
        )
    for name, family, address in (
        ("the metadata address", "AF_INET", ("169.254.169.254", 80)),
        ("the metadata address of IPv6", "AF_INET6", ("fd00:ec2::254", 80)),
        ("the gateway of the bridge", "AF_INET", ("172.17.0.1", 80)),
        ("a public address", "AF_INET", ("192.0.2.1", 443)),
        ("a public address of IPv6", "AF_INET6", ("2001:db8::1", 443)),
        ("the loopback of IPv6", "AF_INET6", ("::1", 8000)),
        ("the loopback in IPv6's clothes", "AF_INET6", ("::ffff:127.0.0.1", 8000)),
        ("no address at all", "AF_INET", ("0.0.0.0", 8000)),  # noqa: S104 - a destination, not a listener
        ("a link-local address", "AF_INET6", ("fe80::1", 80)),
    ):
        code = f"s = socket.socket(socket.{family})\ns.settimeout(1)\ns.connect({address!r})\nreturn 'reached'"
        yield Probe(name=name, code=code, outcomes=UNREACHABLE | errors("EINVAL", "EAFNOSUPPORT") | {"TimeoutError"})
    for name, address in (
        ("a DNS server by UDP", ("192.0.2.53", 53)),
        ("everybody, by broadcast", ("255.255.255.255", 9999)),
        ("a group, by multicast", ("239.0.0.1", 9999)),
    ):
        code = (
            "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.setsockopt(socket.SOL_SOCKET, 6, 1)\n"
            f"return s.sendto(b'x', {address!r})"
        )
        yield Probe(name=name, code=code, outcomes=UNREACHABLE)


def by_file() -> Iterator[Probe]:
    """Sockets that have a name in the file system, or in the kernel's own."""
    paths = (
        "/var/run/docker.sock",
        "/run/docker.sock",
        "/run/containerd/containerd.sock",
        "/run/dbus/system_bus_socket",
    )
    for path in (*paths, "/dev/log", "/run/systemd/private"):
        code = f"s = socket.socket(socket.AF_UNIX)\ns.connect({path!r})\nreturn 'reached'"
        yield Probe(name=f"the socket {path}", code=code, outcomes=NO_FILE | errors("ECONNREFUSED"))
    for name, address in (
        ("a socket in the host's folders", 'os.environ["HOST_SOCKET"]'),
        ("an abstract socket of the host", '"\\0" + os.environ["HOST_ABSTRACT"]'),
        ("the engine's own abstract socket", '"\\0/containerd-shim/"'),
    ):
        code = f"s = socket.socket(socket.AF_UNIX)\ns.connect({address})\nreturn 'reached'"
        yield Probe(name=name, code=code, outcomes=NO_FILE | errors("ECONNREFUSED"))


OTHERS = (
    named("its interfaces", "sorted(os.listdir('/sys/class/net'))", value(["lo"]) | errors("ENOENT", "EACCES")),
    named(
        "its routes", "open('/proc/net/route').read().count('\\n')", value(1) | value(0) | errors("ENOENT", "EACCES")
    ),
    Probe(
        name="names of the world",
        code="return socket.getaddrinfo('example.org', 80)",
        outcomes=frozenset({"gaierror", "ENOENT"}) | UNREACHABLE,
    ),
    Probe(
        name="a new address for its loopback",
        code="""
        request = struct.pack("16sH14s", b"lo", 2, b"\\0\\0\\x0a\\0\\0\\x01")
        fcntl.ioctl(socket.socket(), 0x8916, request)  # SIOCSIFADDR
        return "set"
        """,
        outcomes=BLOCKED | errors("EACCES", "ENOTTY", "EINVAL"),
    ),
    Probe(
        name="a tunnel",
        code="return os.open('/dev/net/tun', os.O_RDWR)",
        outcomes=NO_FILE,
    ),
    Probe(
        name="a port below 1024 on every interface, heard by nobody outside",
        code="""
        listener = socket.socket()
        listener.bind(("0.0.0.0", 80))
        return "bound inside"
        """,
        outcomes=errors("EACCES", "EPERM") | value("bound inside"),  # its own namespace: only lo is there
    ),
    Probe(
        name="a descriptor sent out of the container",
        code="""
        import array
        one = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]))]
        one.sendmsg([b"x"], rights, 0, "\\0" + os.environ["HOST_ABSTRACT"])
        return "sent"
        """,
        outcomes=NO_FILE | errors("ECONNREFUSED", "EPROTOTYPE"),
    ),
)

NETWORK = Family(
    name="network",
    probes=(*families(), *destinations(), *by_file(), *OTHERS),
    attacks=(
        Attack(
            name="its own loopback serves itself, as libraries expect",
            script="""
            server = socket.create_server(("127.0.0.1", 0))
            client = socket.create_connection(server.getsockname())
            client.sendall(b"x")
            print("served", server.accept()[0].recv(1))
            """,
            prints=("served b'x'",),
        ),
        Attack(
            name="a scan of all that could be there",
            script="""
            reached = []
            for port in (22, 53, 80, 443, 2375, 2376, 5432, 8000, 9092, 9093, int(os.environ["HOST_PORT"])):
                for address in os.environ["HOST_ADDRESSES"].split() + ["172.18.0.1", "10.0.2.2", "192.168.65.1"]:
                    with socket.socket() as one:
                        one.settimeout(0.2)
                        if one.connect_ex((address, port)) == 0:
                            reached.append((address, port))
            print("reached", reached)
            """,
            prints=(r"reached \[\]",),
            fast=True,
        ),
    ),
)
