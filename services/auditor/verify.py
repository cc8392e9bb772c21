"""Whether the ledger holds together: every hash, every number, and that rebuilding would give the same tables.

Reads one snapshot, page by page, while auditors go on storing; changes nothing. Output is not part of it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from services.auditor import comparison, store
from services.auditor.audit import Head
from services.auditor.comparison import Difference
from services.backbone.postgres import Connection, open_connection

SCHEMA = "ledger"
PAGE_RUNS = 200
PAGE_ENTRIES = 2000

Progress = Callable[[int], None]
"""Told from time to time how many events have been read."""


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """How much was read, up to the first difference if there is one."""

    events: int
    runs: int
    audit_entries: int
    first_difference: str | None = None

    @property
    def ok(self) -> bool:
        """Whether everything is as it should be."""
        return self.first_difference is None


@dataclass(slots=True)
class _Counts:
    events: int = 0
    runs: int = 0
    audit_entries: int = 0


def no_progress(_: int) -> None:
    """Tell nobody."""


async def verify(url: str, progress: Progress = no_progress) -> VerifyReport:
    """Check the ledger and name the first difference.

    Args:
        url: of the database, as its administrator or as `runyard_auditor`.
        progress: called after each page of runs.
    """
    connection = await open_connection(url, SCHEMA)
    counts = _Counts()
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            found = await _in_runs(connection, counts, progress) or await _in_chain(connection, counts)
    finally:
        await connection.close()
    return VerifyReport(counts.events, counts.runs, counts.audit_entries, str(found[0]) if found else None)


async def _in_runs(connection: Connection, counts: _Counts, progress: Progress) -> list[Difference]:
    after = ""
    while page := await store.next_run_ids(connection, after, PAGE_RUNS):
        if found := await _in_page(connection, page, counts):
            return found
        progress(counts.events)
        after = page[-1]
    return []


async def _in_page(connection: Connection, page: list[str], counts: _Counts) -> list[Difference]:
    events = await store.events_of(connection, page)
    projections = await store.projections_of(connection, page)
    entries = await store.entries_of(connection, page)
    found: list[Difference] = []
    for run_id in page:
        rows = [row.event for row in events[run_id]]
        found.extend(comparison.in_events([(row.event, row.data) for row in events[run_id]]))
        expected, projection = comparison.refold(rows), projections.get(run_id)
        if projection is None:
            found.append(Difference("runs", run_id, "run_id", run_id, None))
        else:
            stored = (projection.run, projection.last_version, projection.last_hash)
            found.extend(comparison.in_projection(run_id, expected, *stored))
        found.extend(comparison.in_entries(run_id, rows, entries[run_id]))
        counts.events += len(rows)
        counts.runs += 1
        if found:
            break
    return found


async def _in_chain(connection: Connection, counts: _Counts) -> list[Difference]:
    head = Head()
    while links := await store.next_links(connection, head.index, PAGE_ENTRIES):
        if found := list(comparison.in_chain(head, links)):
            return found
        head = Head(links[-1].index, links[-1].hash)
        counts.audit_entries += len(links)
    return comparison.in_head(head, await store.read_head(connection))
