"""Rebuilding the runs' projections from the stored events, with the rules of this code.

Never touches an event or an audit entry: the chain is append-only, so entries that are missing are counted and told.
"""

from dataclasses import dataclass

from services.auditor import comparison, store
from services.auditor.history import History, StoredEvent
from services.auditor.verify import PAGE_RUNS, SCHEMA, Progress, no_progress
from services.backbone.postgres import Connection, open_connection


@dataclass(frozen=True, slots=True)
class RebuildReport:
    """How much was read, how many projections changed, and how many audit entries are missing from the chain."""

    events: int
    runs: int
    changed: int
    missing_audit_entries: int


async def rebuild(url: str, progress: Progress = no_progress) -> RebuildReport:
    """Fold every run anew and write what differs, in one transaction; auditors wait meanwhile.

    Args:
        url: of the database, as its administrator or as `runyard_auditor`.
        progress: called after each page of runs.
    """
    events = runs = changed = missing = 0
    connection = await open_connection(url, SCHEMA)
    try:
        async with connection.transaction():
            await store.lock_out_writers(connection)
            after = ""
            while page := await store.next_run_ids(connection, after, PAGE_RUNS):
                rows = await store.events_of(connection, page)
                of_run = {run_id: [row.event for row in rows[run_id]] for run_id in page}
                changed += await _rebuild_page(connection, of_run)
                missing += await _missing_entries(connection, of_run)
                events += sum(map(len, of_run.values()))
                runs, after = runs + len(page), page[-1]
                progress(events)
    finally:
        await connection.close()
    return RebuildReport(events, runs, changed, missing)


async def _rebuild_page(connection: Connection, of_run: dict[str, list[StoredEvent]]) -> int:
    stored = await store.projections_of(connection, list(of_run))
    expected = {run_id: comparison.refold(events) for run_id, events in of_run.items() if events}
    changed = {run_id: history for run_id, history in expected.items() if _differs(run_id, history, stored)}
    orphans = [run_id for run_id in stored if run_id not in expected]
    await store.save_histories(connection, changed)
    await store.delete_projections(connection, orphans)
    return len(changed) + len(orphans)


def _differs(run_id: str, history: History, stored: dict[str, store.Projection]) -> bool:
    found = stored.get(run_id)
    if found is None:
        return True
    return bool(comparison.in_projection(run_id, history, found.run, found.last_version, found.last_hash))


async def _missing_entries(connection: Connection, of_run: dict[str, list[StoredEvent]]) -> int:
    stored = await store.entries_of(connection, list(of_run))
    return sum(
        entry.event_id not in {link.entry.event_id for link in stored[run_id]}
        for run_id, events in of_run.items()
        for entry in comparison.expected_entries(events)
    )
