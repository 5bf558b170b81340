"""Why an install did not come to its end: one exception, raised low, caught once in install.py."""

from comfyd.errors import ComfydError


class InstallFailed(ComfydError):
    """A step failed. reason: stable snake_case cause; hint: what to do next; the message is one sentence.

    state: what the environment is after it, `failed`, or `conflict` where something stands in its place.
    last_lines: what the program that failed printed last.
    """

    def __init__(
        self, message: str, *, reason: str, hint: str = "", state: str = "failed", last_lines: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message, code="install_failed", details={"reason": reason, "hint": hint}, retryable=True)
        self.reason = reason
        self.hint = hint
        self.state = state
        self.last_lines = last_lines
