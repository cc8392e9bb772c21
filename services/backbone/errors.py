"""What can go wrong below a handler, sorted by how it is treated.

    BackboneError
    ├── TransientError          retried in place with backoff; never dead-lettered
    │   ├── PublishFailed       Kafka did not acknowledge in time; the outcome is unknown
    │   └── ObjectUnavailable   the object store did not answer
    ├── PoisonError             this message can never be handled: to the dead letters, with its reason
    ├── TooMuchPoison           so many that the consumer stops and says so
    ├── Stuck                   a part stands still though nothing keeps it from working: the process ends
    ├── BrokerReplaced          another Kafka cluster answers: the process ends, and its next start waits for it
    ├── TopicsUnfit             a topic is there with other partitions than the contract's: somebody has to decide
    ├── ObjectMissing           no object of that key
    ├── ObjectExists            an object of that key is there already
    └── SealBroken              sealed bytes that this key and subject do not open

What is none of these, nor one of `is_transient`, is a bug and ends the process.
"""

import asyncpg


class BackboneError(Exception):
    """Root of what the backbone raises."""


class TransientError(BackboneError):
    """May go well when tried again."""


class PublishFailed(TransientError):
    """Kafka did not acknowledge; the records may or may not be there."""


class ObjectUnavailable(TransientError):
    """The object store did not answer."""


class PoisonError(BackboneError):
    """A message that can never be handled; its text is the reason that the dead letter gives."""


class TooMuchPoison(BackboneError):
    """More poison than a stray message explains: stop, and let a person look."""


class Stuck(BackboneError):
    """A part stands still though nothing keeps it from working; a new process may do better."""


class BrokerReplaced(BackboneError):
    """Another cluster answers now: the process ends, and its next start waits until that one is named."""


class TopicsUnfit(BackboneError):
    """A topic has other partitions than ours, so runs would lose their order; the text says what to do."""


class ObjectMissing(BackboneError):
    """No object of that key."""


class ObjectExists(BackboneError):
    """An object of that key is there already."""


class SealBroken(BackboneError):
    """Sealed bytes that do not open: wrong key, wrong subject, or changed."""


_TRANSIENT = (
    TransientError,
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.TransactionRollbackError,
    asyncpg.LockNotAvailableError,
)
"""What asyncpg raises while a server restarts, fails over, or breaks a deadlock (found by restarting one)."""

_POISON = (
    PoisonError,
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
)
"""What Postgres can never hold: wrong values, broken constraints, a key too long for its index."""


def is_transient(error: BaseException) -> bool:
    """Whether trying again may help."""
    return isinstance(error, _TRANSIENT)


def is_poison(error: BaseException) -> bool:
    """Whether the message itself is the trouble."""
    return isinstance(error, _POISON)
