"""Secrets: a run's variables stand nowhere but in its own process, and its own orders are its own."""

from tests.security.case import FAILED, NO_FILE, READ_ONLY, Attack, Family, Probe, errors, named, value

CANARY = "canary-7b1f4e-hostile"
VARIABLES = {"API_TOKEN": CANARY}

SECRETS = Family(
    name="secrets",
    attacks=(
        Attack(
            name="a value that is used and not told",
            script="assert os.environ['API_TOKEN'].startswith('canary')",
            variables=VARIABLES,
            never=(CANARY,),
            fast=True,
        ),
        Attack(
            name="a value that is printed",
            script="""
            print("token:", os.environ["API_TOKEN"], file=sys.stderr)
            print(os.environ["API_TOKEN"] * 3)
            print(dict(os.environ))
            """,
            variables=VARIABLES,
            never=(CANARY,),
            fast=True,
        ),
        Attack(
            name="a value in an exception's message",
            script="raise RuntimeError('no access with ' + os.environ['API_TOKEN'])",
            variables=VARIABLES,
            reasons=FAILED,
            never=(CANARY,),
        ),
        Attack(
            name="a value that is printed in two halves, and across the end of a line that is cut",
            script="""
            token = os.environ["API_TOKEN"]
            for half in (token[:9], token[9:] + "\\n"):
                sys.stdout.write(half)
                sys.stdout.flush()
                time.sleep(0.3)
            print("x" * (16384 - 10) + token + "y" * 100)
            """,
            variables=VARIABLES,
            never=(CANARY,),
        ),
        Attack(
            name="a value as the name of a metric",
            script="""
            with open(METRICS, "a") as file:
                file.write(json.dumps({"name": "loss-" + os.environ["API_TOKEN"], "value": 1}) + "\\n")
            """,
            variables=VARIABLES,
            never=(CANARY,),
        ),
        Attack(
            name="values of several lines",
            script="print(os.environ['KEY'])",
            variables={"KEY": "-----BEGIN KEY-----\ncanary-of-line-two\n-----END KEY-----"},
            never=("canary-of-line-two",),
        ),
        Attack(
            name="values that another run had",
            script="""
            found = []
            for top in ("/tmp", "/dev/shm", "/runyard", "/run", "/var"):
                for folder, _, names in os.walk(top):
                    for name in names:
                        try:
                            with open(os.path.join(folder, name), "rb") as file:
                                found += [name] * (b"canary-7b1f4e" in file.read(1 << 20))
                        except OSError:
                            pass
            print("found", found)
            """,
            prints=(r"found (\[\]|\['train.py'\])",),
        ),
    ),
    probes=(
        named("another process's environment", "open('/proc/1/environ', 'rb').read()", errors("EACCES", "EPERM")),
        named("the shim's memory", "open('/proc/1/mem', 'rb').read(1)", errors("EACCES", "EPERM", "EIO")),
        named("the shim's command holds no value", "b'canary' in open('/proc/1/cmdline', 'rb').read()", value(False)),
        Probe(
            name="the runner's own files",
            code="""
            names = ("journal.db", "secrets.json", "objects", "cache")
            return [os.path.join(folder, name) for folder in ("/", "/runyard", "/runyard/slot") for name in names
                    if os.path.exists(os.path.join(folder, name))]
            """,
            outcomes=value([]),
        ),
        named("credentials of a cloud", "os.listdir('/root/.aws')", NO_FILE),
        named("a token of Kubernetes", "open('/var/run/secrets/kubernetes.io/serviceaccount/token').read()", NO_FILE),
        named("the orders, rewritten", "os.open('/runyard/slot/spec.json', os.O_WRONLY)", READ_ONLY),
        named("the orders, replaced", "os.rename('/runyard/slot/spec.json', '/runyard/slot/x')", READ_ONLY),
    ),
)

PLAIN_DEVICES = [
    "core",
    "fd",
    "full",
    "mqueue",
    "null",
    "ptmx",
    "pts",
    "random",
    "shm",
    "stderr",
    "stdin",
    "stdout",
    "tty",
]

DEVICES = Family(
    name="devices",
    attacks=(
        Attack(
            name="GPUs asked for by variables",
            script="""
            gpus = [n for n in os.listdir("/dev") if n.startswith(("nvidia", "dri", "kfd", "dxg"))]
            print("devices", gpus)
            """,
            variables={
                "NVIDIA_VISIBLE_DEVICES": "all",
                "NVIDIA_DRIVER_CAPABILITIES": "all",
                "CUDA_VISIBLE_DEVICES": "0",
                "NVIDIA_DISABLE_REQUIRE": "1",
            },
            prints=(r"devices \[\]",),
            judge=lambda seen: ["the engine was told"] * ("NVIDIA_VISIBLE" in seen.inspected),
            fast=True,
        ),
        Attack(
            name="runtimes and hooks asked for by variables",
            script="print('ran')",
            variables={"_CONTAINERS_ROOTLESS_UID": "0", "_LIBCONTAINER_INITPIPE": "3", "NOTIFY_SOCKET": "/run/x"},
            prints=("ran",),
            judge=lambda seen: ["the engine was told"] * ("_LIBCONTAINER" in seen.inspected),
        ),
    ),
    probes=(
        Probe(
            name="no device but the plain ones",
            code=f"""
            plain = {[*PLAIN_DEVICES, "zero", "console", "urandom"]!r}
            return sorted(n for n in os.listdir("/dev") if n not in plain)
            """,
            outcomes=value([]),
        ),
        *(
            Probe(name=f"the device {path}", code=f"return os.open({path!r}, os.O_RDWR)", outcomes=NO_FILE)
            for path in (
                *("/dev/nvidia0", "/dev/nvidiactl", "/dev/dri/renderD128", "/dev/kfd", "/dev/kvm", "/dev/fuse"),
                *(
                    "/dev/mem",
                    "/dev/vda",
                    "/dev/sda",
                    "/dev/nvme0",
                    "/dev/loop0",
                    "/dev/tty0",
                    "/dev/ttyS0",
                    "/dev/snd/seq",
                ),
                *("/dev/input/event0", "/dev/hwrng", "/dev/net/tun", "/dev/vfio/vfio", "/dev/uinput", "/dev/cuse"),
            )
        ),
        Probe(
            name="a device by its number, in every writable place",
            code="""
            for place in ("/tmp", "/dev/shm", OUT):
                for kind, major, minor in ((stat.S_IFBLK, 254, 0), (stat.S_IFCHR, 1, 1), (stat.S_IFCHR, 195, 0)):
                    try:
                        os.mknod(f"{place}/node", 0o666 | kind, os.makedev(major, minor))
                        return place
                    except OSError as problem:
                        last = problem
            raise last
            """,
            outcomes=errors("EPERM", "EACCES", "EROFS"),
        ),
        Probe(
            name="a terminal of somebody else",
            code="return [n for n in os.listdir('/dev/pts') if n != 'ptmx']",
            outcomes=value([]),
        ),
    ),
)
