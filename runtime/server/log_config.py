"""The log of a server: what goes to standard error, and how a line of it is written."""

from __future__ import annotations

import datetime
import json
import logging
from typing import Any, Literal, get_args

from fluxtalk.runtime.server.http.quiet_log import OncePerSecond
from fluxtalk.runtime.server.tracing import trace_ids

LogFormat = Literal["text", "json"]
LOG_FORMATS: tuple[str, ...] = get_args(LogFormat)
_LINE = "%(asctime)s %(levelname)s %(process)d %(message)s"


class JsonFormatter(logging.Formatter):
    """Writes a message as one line of JSON: time (UTC, ISO 8601), level, logger, process, message, and the ids of the
    request's trace if it is traced."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one message."""
        when = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, Any] = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
            **trace_ids(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class BriefFilter(logging.Filter):
    """Says in one line what a library logs with a traceback, such as that no collector of traces answers."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Shorten one message."""
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and record.name.startswith("opentelemetry"):
            record.msg, record.args = f"{record.getMessage().rstrip('.')}: {type(error).__name__}.", None
            record.exc_info = record.exc_text = None
        return True


def log_config(log_format: str = "text") -> dict[str, Any]:
    """Make the dictionary from which `logging.config` sets up the log.

    Args:
        log_format: one of `LOG_FORMATS`.
    """
    formatters = {"text": {"format": _LINE}, "json": {"()": JsonFormatter}}
    warnings = {"handlers": ["stderr"], "level": "WARNING", "propagate": False}
    nowhere = {"handlers": ["nowhere"], "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": formatters[log_format]},
        "filters": {"once": {"()": OncePerSecond}, "brief": {"()": BriefFilter}},
        "handlers": {
            "stderr": {"class": "logging.StreamHandler", "formatter": "line", "filters": ["brief", "once"]},
            "nowhere": {"class": "logging.NullHandler"},
        },
        "loggers": {
            "fluxtalk.server": {**warnings, "level": "INFO"},
            "fluxtalk.backends": {**warnings, "level": "INFO"},
            "uvicorn": warnings,
            "asyncio": warnings,
            "opentelemetry": warnings,
            # These libraries read bodies, and log what they find odd in them.
            "python_multipart": nowhere,
            "PIL": nowhere,
        },
    }
