"""Logs: one event a line, for people on a terminal, JSON elsewhere; Celery's own lines take the same form.

What a line is about (deletion, finetune, account) is bound once, when a runner takes a claimed deletion
(`tasks.runner`), and is on each line until it is done. A key, a token or details are never given to the log.
"""

import logging
import sys

import structlog


def configure(level: str = "INFO") -> None:
    """Send all logging of this process to stderr in one form."""
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    formatter = structlog.stdlib.ProcessorFormatter
    structlog.configure(
        processors=[*shared, formatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    renderer: structlog.types.Processor = (
        # Its own tracebacks show local variables, and so keys.
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        if sys.stderr.isatty()
        else structlog.processors.JSONRenderer()
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        formatter(foreign_pre_chain=shared, processors=[formatter.remove_processors_meta, renderer])
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.captureWarnings(capture=True)
    # Celery's line for each message says nothing that ours for each deletion does not; urllib3 logs each request's
    # path at DEBUG, and each retry of a pool at WARNING, and ours says what matters.
    for name in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.ERROR)
