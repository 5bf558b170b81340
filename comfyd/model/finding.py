"""What `comfyd doctor` finds: one line each, and the sum of them."""

from typing import Literal

from comfyd.model.base import Frozen

Level = Literal["ok", "warning", "error"]


class Finding(Frozen):
    """name: stable name of the check; subject: which instance, environment, port or folder it is about ("" = all).

    hint: what to do; never empty unless `ok`.
    """

    name: str
    subject: str = ""
    level: Level
    message: str
    hint: str = ""


class Diagnosis(Frozen):
    """All findings in the order of the checks. source: daemon | offline (no daemon answered)."""

    source: Literal["daemon", "offline"]
    findings: tuple[Finding, ...]

    def count(self, level: Level) -> int:
        return sum(1 for one in self.findings if one.level == level)
