"""The Postgres schemas of the whole system, in the order in which they depend on one another, and who may use them.

Run by an administrator (`runyard migrate`, `runyard up`, the tests) before the services start; the services themselves
have no right to change a table.
"""

from pathlib import Path

from services.backbone.migrations import SchemaPlan, migrate

SERVICES = Path(__file__).parent.parent
OUTBOX = SERVICES / "backbone" / "migrations"
BROKER = OUTBOX / "broker"

API_ROLE = "runyard_api"
SCHEDULER_ROLE = "runyard_scheduler"
AUDITOR_ROLE = "runyard_auditor"

PLANS = (
    SchemaPlan("registry", API_ROLE, (OUTBOX, BROKER, SERVICES / "api" / "migrations")),
    SchemaPlan("scheduling", SCHEDULER_ROLE, (OUTBOX, BROKER, SERVICES / "scheduler" / "migrations")),
    SchemaPlan("ledger", AUDITOR_ROLE, (BROKER, SERVICES / "auditor" / "migrations")),
)


async def migrate_all(admin_url: str, passwords: dict[str, str]) -> list[str]:
    """Bring all schemas up to date; returns the names of the migrations that ran.

    Args:
        admin_url: of a role that may create roles and schemas.
        passwords: by role name; a role without one keeps the one it has.
    """
    return await migrate(admin_url, PLANS, passwords)
