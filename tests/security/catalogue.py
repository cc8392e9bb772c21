"""All families of hostile cases, in the order in which they are played."""

from tests.security.case import Family
from tests.security.family_artifact import ARCHIVES, ARTIFACT
from tests.security.family_disk import DISK
from tests.security.family_escape import ESCAPE
from tests.security.family_memory import MEMORY
from tests.security.family_names import TRAVERSAL, VARIABLES
from tests.security.family_neighbours import NEIGHBOURS
from tests.security.family_network import NETWORK
from tests.security.family_output import LOGS, METRICS
from tests.security.family_processes import CPU, DAEMONS, FORK
from tests.security.family_secrets import DEVICES, SECRETS
from tests.security.family_signals import EXIT_CODES, SIGNALS

FAMILIES: tuple[Family, ...] = (
    FORK,
    MEMORY,
    CPU,
    LOGS,
    METRICS,
    DISK,
    ARTIFACT,
    ARCHIVES,
    TRAVERSAL,
    VARIABLES,
    NETWORK,
    ESCAPE,
    SIGNALS,
    EXIT_CODES,
    DAEMONS,
    NEIGHBOURS,
    DEVICES,
    SECRETS,
)
