"""Memory by every door: heap, shared mappings, temporary file systems, memory files, the kernel's own."""

from schemas.reason import Reason
from tests.security.case import FAILED, FINE, Attack, Family, Probe, errors

ENDED_BY_THE_LIMIT = (Reason.OUT_OF_MEMORY,)

MEMORY = Family(
    name="memory",
    attacks=(
        Attack(
            name="a heap without end",
            script="""
            hoard = []
            while True:
                hoard.append(bytearray(b"x") * (16 << 20))
            """,
            reasons=ENDED_BY_THE_LIMIT,
            heavy=True,
            fast=True,
        ),
        Attack(
            name="a shared mapping without end",
            script="""
            hoard = []
            while True:
                block = mmap.mmap(-1, 16 << 20)
                block.write(b"x" * (16 << 20))
                hoard.append(block)
            """,
            reasons=ENDED_BY_THE_LIMIT,
        ),
        Attack(
            name="memory files without end",
            script="""
            hoard = []
            while True:
                file = os.memfd_create("hoard")
                os.write(file, b"x" * (16 << 20))
                hoard.append(file)
            """,
            reasons=ENDED_BY_THE_LIMIT,
            heavy=True,
        ),
        Attack(
            name="/tmp until it is full",
            script="""
            written = 0
            try:
                with open("/tmp/hoard", "wb", buffering=0) as file:
                    while written < 2 << 30:
                        written += file.write(b"x" * (1 << 20))
            except OSError as problem:
                print(errno.errorcode[problem.errno], written <= 64 << 20)
            """,
            prints=("ENOSPC True",),
            fast=True,
        ),
        Attack(
            name="/dev/shm until it is full, then the heap",
            script="""
            try:
                with open("/dev/shm/hoard", "wb", buffering=0) as file:
                    while True:
                        file.write(b"x" * (1 << 20))
            except OSError as problem:
                print(errno.errorcode[problem.errno])
            hoard = []
            while True:
                hoard.append(bytearray(b"x") * (16 << 20))
            """,
            prints=("ENOSPC",),
            reasons=ENDED_BY_THE_LIMIT,
        ),
        Attack(
            name="System V shared memory without end",
            script="""
            libc.shmat.restype = ctypes.c_void_p
            while True:
                segment = libc.shmget(0, 16 << 20, 0o1600)
                if segment < 0:
                    print("refused", errno.errorcode[ctypes.get_errno()])
                    break
                ctypes.memset(libc.shmat(segment, None, 0), 1, 16 << 20)
            """,
            reasons=(*ENDED_BY_THE_LIMIT, *FINE),
        ),
        Attack(
            name="a child takes it while the script waits",
            script="""
            if os.fork() == 0:
                hoard = []
                while True:
                    hoard.append(bytearray(b"x") * (16 << 20))
            _, status = os.wait()
            print("child killed", os.WIFSIGNALED(status))
            sys.exit(4)
            """,
            reasons=(*ENDED_BY_THE_LIMIT, *FAILED),
        ),
        Attack(
            name="many children take it at once",
            script="""
            for _ in range(20):
                if os.fork() == 0:
                    break
            hoard = []
            while True:
                hoard.append(bytearray(b"x") * (4 << 20))
            """,
            reasons=ENDED_BY_THE_LIMIT,
            heavy=True,
        ),
        Attack(
            name="pipes filled to the brim",
            script="""
            hoard = []
            try:
                while True:
                    read, write = os.pipe()
                    os.set_blocking(write, False)
                    try:
                        fcntl.fcntl(write, 1031, 1 << 20)  # F_SETPIPE_SZ
                    except OSError:
                        pass
                    try:
                        os.write(write, b"x" * (1 << 20))
                    except BlockingIOError:
                        pass
                    hoard.append((read, write))
            except OSError as problem:
                print("bounded by", errno.errorcode[problem.errno])
            """,
            reasons=(*ENDED_BY_THE_LIMIT, *FINE),
        ),
        Attack(
            name="sockets filled to the brim",
            script="""
            hoard = []
            try:
                while True:
                    one, other = socket.socketpair()
                    one.setblocking(False)
                    try:
                        while True:
                            one.send(b"x" * 65536)
                    except BlockingIOError:
                        pass
                    hoard.append((one, other))
            except OSError as problem:
                print("bounded by", errno.errorcode[problem.errno])
            """,
            reasons=(*ENDED_BY_THE_LIMIT, *FINE),
        ),
        Attack(
            name="more address space than any machine has",
            script="""
            try:
                mmap.mmap(-1, 1 << 46)
                print("mapped and never touched")
            except (OSError, OverflowError, ValueError) as problem:
                print("refused")
            """,
            prints=("refused|mapped and never touched",),
        ),
        Attack(
            name="files read through, which may fill the cache and nothing else",
            script="""
            with open(OUT + "/large", "wb") as file:
                for _ in range(24):
                    file.write(b"x" * (1 << 20))
            for _ in range(20):
                with open(OUT + "/large", "rb") as file:
                    while file.read(1 << 20):
                        pass
            print("done")
            """,
            prints=("done",),
        ),
        Attack(
            name="a recursion without end",
            script="""
            sys.setrecursionlimit(10 ** 9)
            threading.stack_size(512 << 20)
            def down():
                return [down()]
            thread = threading.Thread(target=down)
            thread.start()
            thread.join()
            """,
            reasons=(*FAILED, *ENDED_BY_THE_LIMIT, *FINE),
        ),
    ),
    probes=(
        Probe(
            name="memory that cannot be swapped",
            code="""
            block = mmap.mmap(-1, 512 << 20)
            address = ctypes.addressof(ctypes.c_char.from_buffer(block))
            return syscall(149, address, 512 << 20)
            """,
            outcomes=errors("ENOMEM", "EPERM", "EAGAIN"),
        ),
        Probe(
            name="to be spared when memory runs out",
            code="""
            with open("/proc/self/oom_score_adj", "w") as file:
                file.write("-1000")
            return "spared"
            """,
            outcomes=errors("EACCES", "EPERM", "EROFS"),
        ),
        Probe(
            name="the shim's death when memory runs out",
            code="""
            with open("/proc/1/oom_score_adj", "w") as file:
                file.write("1000")
            return "the shim goes first"
            """,
            outcomes=errors("EACCES", "EPERM", "EROFS"),
        ),
        Probe(
            name="huge pages",
            code="return mmap.mmap(-1, 2 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000) and 'had'",
            outcomes=errors("ENOMEM", "EPERM", "EINVAL"),
        ),
        Probe(
            name="a larger /tmp",
            code="return syscall(165, b'tmpfs', b'/tmp', b'tmpfs', 32, b'size=10g')",
            outcomes=errors("EPERM", "ENOSYS"),
        ),
        Probe(
            name="its own limit, by the control group",
            code="""
            for name in ("memory/memory.limit_in_bytes", "memory.max"):
                try:
                    with open("/sys/fs/cgroup/" + name, "w") as file:
                        file.write("-1")
                    return name
                except OSError as problem:
                    last = problem
            raise last
            """,
            outcomes=errors("EROFS", "EACCES", "EPERM", "ENOENT"),
        ),
    ),
)
