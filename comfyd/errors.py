"""Every error comfyd raises on purpose, and the one table from error code to HTTP status.

Owns: the stable error codes. Must not: know who catches them or how they are shown.
"""

from collections.abc import Mapping
from typing import Any, Final

HTTP_STATUS: Final[Mapping[str, int]] = {
    "bad_request": 400,
    "invalid_json": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "forbidden_host": 403,
    "forbidden_origin": 403,
    "not_found": 404,
    "unknown_instance": 404,
    "unknown_environment": 404,
    "unknown_workflow": 404,
    "unknown_override": 404,
    "unknown_output": 404,
    "task_not_found": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "conflict": 409,
    "config_read_only": 409,
    "illegal_transition": 409,
    "stale_lease": 409,
    "precondition_failed": 412,
    "payload_too_large": 413,
    "unsupported_media_type": 415,
    "validation_failed": 422,
    "invalid_config": 422,
    "idempotency_mismatch": 422,
    "missing_workflow_graph": 422,
    "too_many_requests": 429,
    "queue_full": 429,
    "internal": 500,
    "start_failed": 500,
    "stop_failed": 500,
    "install_failed": 500,
    "download_failed": 502,
    "not_ready": 503,
    "store_unavailable": 503,
    "store_corrupt": 503,
    "storage_full": 503,
}
"""Code -> HTTP status. Codes are part of the public contract: add, never rename."""


class ComfydError(Exception):
    """An expected failure: a stable `code`, a message for people, details for programs.

    `retryable` says that the same call may succeed later without any change by the caller.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str = "internal",
        details: Mapping[str, Any] | None = None,
        retryable: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.details: dict[str, Any] = dict(details or {})
        self.retryable = retryable

    @property
    def http_status(self) -> int:
        return HTTP_STATUS[self.code]


class SettingsError(ComfydError):
    """A bad COMFYD_* setting: the process ends with exit code 78."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="invalid_config")


class LockHeldError(ComfydError):
    """Another process holds the state folder (exit code 75); the message names the holder."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="conflict", retryable=True)


class StoreError(ComfydError):
    """The database cannot be used now. Never raised after something was acknowledged."""

    def __init__(self, message: str, *, code: str = "store_unavailable", retryable: bool = True) -> None:
        super().__init__(message, code=code, retryable=retryable)
