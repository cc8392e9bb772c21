"""The audit log of a tenant."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Query

from services.api.context import CurrentCall
from services.api.cursors import decode_cursor, encode_cursor
from services.api.guard import GuardedRoute, guarded
from services.api.history import AuditFilter, select_audit
from services.api.parameters import DEFAULT_PAGE, FilterText, Limit, Moment, NumberCursor
from services.api.resources import AuditEntry, Page

router = APIRouter(prefix="/api/v1/audit-log", tags=["audit"], route_class=GuardedRoute)


async def _period(
    since: Annotated[Moment | None, Query(description="From this time on (RFC 3339, with an offset).")] = None,
    until: Annotated[Moment | None, Query(description="Before this time.")] = None,
) -> tuple[datetime | None, datetime | None]:
    return since, until


async def _filter(
    period: Annotated[tuple[datetime | None, datetime | None], Depends(_period)],
    action: FilterText = None,
    model_id: FilterText = None,
    run_id: FilterText = None,
    actor: FilterText = None,
) -> AuditFilter:
    return AuditFilter(action, model_id, run_id, actor, *period)


@router.get("", summary="Read the audit log", **guarded("audit:read"))
async def get_audit_log(
    call: CurrentCall,
    wanted: Annotated[AuditFilter, Depends(_filter)],
    limit: Limit = DEFAULT_PAGE,
    cursor: NumberCursor = None,
) -> Page[AuditEntry]:
    """Read who did what and when, newest first; each entry holds the hash of the one before it."""
    before = None if cursor is None else int(decode_cursor(cursor, int)[0])
    found = await select_audit(call.context.pool, call.caller.tenant_id, wanted, before, limit + 1)
    items = found[:limit]
    following = encode_cursor(items[-1].index) if len(found) > limit else None
    return Page(items=items, next_cursor=following)
