"""PostgreSQL and Apache Kafka in containers, so that a test can pause them, cut them off and kill them.

The images are those of compose.yaml. Everything carries the pid of its test process, and what a killed one has left is
removed at the next start: there is no helper container that would do it.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import randrange
from typing import Any

import docker
from docker.errors import APIError
from docker.models.containers import Container
from docker.models.networks import Network as DockerNetwork
from docker.types import EndpointConfig, IPAMConfig, IPAMPool
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network

from deploy.images.build import ensure, workshop
from services.cli.embedded_process import free_port

PID_LABEL = "runyard.test_pid"
PASSWORD = "of-the-tests"
testcontainers_config.ryuk_disabled = True


@dataclass(frozen=True)
class Server:
    """A server in a container; its address stays the same, whatever happens to it."""

    container: Container
    network: DockerNetwork
    host: str
    port: int

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Freeze it: connections stay open, and nobody answers."""
        self.container.pause()
        try:
            yield
        finally:
            self.container.unpause()

    @contextmanager
    def cut_off(self) -> Iterator[None]:
        """Take its network away: it runs, and nobody reaches it. Not for a published port, which would be lost."""
        self.network.disconnect(self.container)
        try:
            yield
        finally:
            self.network.connect(self.container, ipv4_address=self.host)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self.container.kill()

    def start(self) -> None:
        """Start it again on what it has kept."""
        self.container.start()


@dataclass(frozen=True)
class Servers:
    """One of each."""

    postgres: Server
    kafka: Server

    @property
    def admin_url(self) -> str:
        """Where PostgreSQL's administrator connects."""
        return f"postgresql://runyard_admin:{PASSWORD}@{self.postgres.host}:{self.postgres.port}/runyard"

    @property
    def bootstrap_servers(self) -> str:
        """Where Kafka clients connect."""
        return f"{self.kafka.host}:{self.kafka.port}"


@contextmanager
def servers_in_containers() -> Iterator[Servers]:
    """Start both, not waiting until they are ready, and remove every trace of them at the end."""
    remove_leftovers()
    with workshop(lambda line: None) as shop:
        images = {name: ensure(name, shop) for name in ("POSTGRES_IMAGE", "KAFKA_IMAGE")}
    with ExitStack() as stack:
        network, subnet = stack.enter_context(network_with_a_subnet())
        address = f"{subnet}.10"
        postgres = DockerContainer(images["POSTGRES_IMAGE"]).with_network(network).with_envs(**postgres_settings())
        postgres.ports["5432/tcp"] = ("127.0.0.1", port := free_port())  # type: ignore[assignment]
        kafka = DockerContainer(images["KAFKA_IMAGE"]).with_network(network).with_envs(**kafka_settings(address))
        place = {network.name: EndpointConfig(docker.constants.MINIMUM_DOCKER_API_VERSION, ipv4_address=address)}
        stack.enter_context(postgres.with_kwargs(labels=mine()))
        stack.enter_context(kafka.with_kwargs(labels=mine(), networking_config=place))
        started = network._unwrap_network
        yield Servers(
            Server(postgres.get_wrapped_container(), started, "127.0.0.1", port),
            Server(kafka.get_wrapped_container(), started, address, 9092),
        )


@contextmanager
def network_with_a_subnet() -> Iterator[tuple[Network, str]]:
    """Make a network whose addresses can be chosen; the second value is their first three numbers."""
    for _ in range(20):
        subnet = f"10.{randrange(128, 255)}.{randrange(255)}"
        pools = IPAMConfig(pool_configs=[IPAMPool(subnet=f"{subnet}.0/24")])
        network = Network(docker_network_kw={"labels": mine(), "ipam": pools})
        try:
            with network:
                yield network, subnet
            return
        except APIError as error:
            if "overlaps" not in str(error):
                raise
        finally:
            network._docker.client.close()
    raise RuntimeError("every subnet overlaps another one")


def postgres_settings() -> dict[str, str]:
    return {"POSTGRES_USER": "runyard_admin", "POSTGRES_PASSWORD": PASSWORD, "POSTGRES_DB": "runyard"}


def kafka_settings(address: str) -> dict[str, str]:
    return {
        "CLUSTER_ID": "cGF1c2VkLXNlcnZlcnMtIQ",
        "KAFKA_NODE_ID": "1",
        "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
        "KAFKA_PROCESS_ROLES": "broker,controller",
        "KAFKA_LISTENERS": "PLAINTEXT://:9092,CONTROLLER://127.0.0.1:9093",
        "KAFKA_ADVERTISED_LISTENERS": f"PLAINTEXT://{address}:9092",
        "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
        "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@127.0.0.1:9093",
        "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
        "KAFKA_OFFSETS_TOPIC_NUM_PARTITIONS": "4",
        "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
        "KAFKA_LOG_DIRS": "/var/lib/kafka/data",
        "KAFKA_HEAP_OPTS": "-Xmx384m",
    }


def mine() -> dict[str, str]:
    return {PID_LABEL: str(os.getpid())}


def remove_leftovers() -> None:
    """Remove what test processes have left that are no more."""
    client = docker.from_env()
    found: list[Any] = [*client.containers.list(all=True, filters={"label": PID_LABEL})]
    for thing in found + client.networks.list(filters={"label": PID_LABEL}):
        labels = thing.attrs.get("Labels") or thing.attrs["Config"]["Labels"]
        if not Path("/proc", labels[PID_LABEL]).exists():
            with suppress(APIError):  # another test process is at it, too
                thing.remove(**({"force": True, "v": True} if isinstance(thing, Container) else {}))
    client.close()
