"""Structured logs and trace context. One JSON line per decision and per boundary, on standard error.

Never holds secrets or what a script printed; every line has a stable `event` key.
"""

import logging
import secrets
import sys

import structlog
from structlog.tracebacks import ExceptionDictTransformer


def configure_logs(service: str, level: str) -> None:
    """Send JSON lines to standard error, each with the service's name and a UTC time."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False)),  # locals hold secrets
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(name)s: %(message)s")


def new_traceparent() -> str:
    """Begin a trace: a sampled W3C `traceparent` with random ids (W3C Trace Context, 2021)."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
