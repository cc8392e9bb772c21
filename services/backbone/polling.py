"""Polling that loses nothing to a record that the Kafka client cannot read.

aiokafka throws away everything that it had taken out for a poll when one record of it cannot be parsed (a header's
name that is no UTF-8, a codec that is not installed, a broken checksum), has moved on past the rest, and fails on that
record for ever. Here the positions of before are restored, what can be read is read record by record, and the one that
cannot is handed over as `UnreadableRecord`. Never decides what becomes of it.
"""

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import (
    ConsumerStoppedError,
    CorruptRecordException,
    IllegalStateError,
    KafkaError,
    UnsupportedCodecError,
)

POSITION_POLL_S = 0.01
MOST_CAREFUL_RECORDS = 500

Records = dict[TopicPartition, list[ConsumerRecord]]

log = structlog.get_logger()


@dataclass
class UnreadableRecord(ConsumerRecord):  # type: ignore[misc]
    """A record of which nothing is known but where it stands, and why it cannot be read."""

    why: str = ""


class CarefulConsumer(AIOKafkaConsumer):  # type: ignore[misc]
    """aiokafka's consumer, whose `getmany` hands over every record once, readable or not."""

    def __init__(self, *topics: str, **options: Any) -> None:
        super().__init__(*topics, **options)
        self.polled_at = time.monotonic()
        self.in_hand = False
        """Whether a poll has taken records out that the handler has not given back yet (it sets this to False)."""
        self._careful = False

    @property
    def joining(self) -> bool:
        """Whether it has no assignment, not even an empty one: its group has not made up its mind yet."""
        return self._subscription.subscription is None or self._subscription.subscription.assignment is None

    def positions(self) -> dict[TopicPartition, int]:
        """Tell the next offset of each assigned partition, as far as it is known."""
        if self.joining:
            return {}
        states = self._subscription.subscription.assignment
        known = {tp: states.state_value(tp) for tp in states.tps}
        return {tp: state.position for tp, state in known.items() if state.has_valid_position}

    async def getmany(
        self, *partitions: TopicPartition, timeout_ms: int = 0, max_records: int | None = None
    ) -> Records:
        """Poll as aiokafka does; see there."""
        if self._careful:
            records = await self._poll_carefully(timeout_ms, max_records or MOST_CAREFUL_RECORDS)
        else:
            records = await self._poll(partitions, timeout_ms, max_records)
        self.polled_at = time.monotonic()
        return records

    async def _poll(self, partitions: tuple[TopicPartition, ...], timeout_ms: int, max_records: int | None) -> Records:
        """Poll partitions whose positions are known, so that these can be restored."""
        before = self.positions()
        if not before:
            await asyncio.sleep(min(timeout_ms / 1000, POSITION_POLL_S))
        wanted = [tp for tp in partitions or before if tp in before]
        patience_ms = timeout_ms if before else 0
        try:
            polled: Records = await super().getmany(*wanted, timeout_ms=patience_ms, max_records=max_records)
        except (ConsumerStoppedError, IllegalStateError):
            raise
        except Exception as error:
            if not _unreadable(error):
                raise
            log.warning("poll_starts_over", error=repr(error))
            self._careful = True
            for partition, position in before.items():
                self._seek(partition, position)
            return await self._poll_carefully(timeout_ms, max_records or MOST_CAREFUL_RECORDS)
        self.in_hand = self.in_hand or bool(polled)
        return polled

    async def _poll_carefully(self, timeout_ms: int, max_records: int) -> Records:
        """Take records one by one until the one that cannot be read is found, or all that is there could be read.

        What was taken is handed over whatever happens behind it: its position has moved on.
        """
        found: Records = {}
        for partition in sorted(self.positions()):
            for _ in range(max_records):
                try:
                    polled = await super().getmany(partition, timeout_ms=timeout_ms, max_records=1)
                except (ConsumerStoppedError, IllegalStateError):
                    raise
                except Exception as error:
                    if not _unreadable(error):
                        if found:
                            return found
                        raise
                    self._careful, self.in_hand = False, True
                    found.setdefault(partition, []).append(self._step_over(partition, error))
                    return found
                if not polled:
                    break
                self.in_hand = True
                found.setdefault(partition, []).extend(polled[partition])
        self._careful = False
        return found

    def _step_over(self, partition: TopicPartition, error: Exception) -> UnreadableRecord:
        offset = self.positions()[partition]
        self._seek(partition, offset + 1)
        nothing: tuple[Any, ...] = (-1, 0, None, None, None, -1, -1, ())
        why = f"the record cannot be read: {type(error).__name__}: {error}"
        return UnreadableRecord(partition.topic, partition.partition, offset, *nothing, why=why)

    def _seek(self, partition: TopicPartition, offset: int) -> None:
        try:
            self.seek(partition, offset)
        except IllegalStateError:  # it belongs to somebody else by now
            log.info("partition_moved_on", topic=partition.topic, partition=partition.partition)


def _unreadable(error: Exception) -> bool:
    """Whether a failed poll met a record: neither a broker that is away nor a bug is about one record.

    What decompressors raise has no class in common; what is named here is none of it.
    """
    if isinstance(error, KafkaError):
        return isinstance(error, CorruptRecordException | UnsupportedCodecError)
    return not isinstance(error, OSError | RuntimeError | AssertionError | AttributeError | NameError)
