"""How mmdit says no: one line, and the exit code that belongs to it."""


class MmditError(Exception):
    """An ending that the user can act on.

    The message is one line: what happened, where, what was got, what was expected, and what to do.
    `exit_code` is what the command line ends with.
    """

    exit_code = 4

    def __init__(
        self, what: str, *, where: object = None, got: object = None, expected: object = None, fix: str | None = None
    ) -> None:
        parts = [what]
        if where is not None:
            parts.append(f"in {where}")
        if got is not None:
            parts.append(f"got {got}")
        if expected is not None:
            parts.append(f"expected {expected}")
        line = ", ".join(parts)
        if fix is not None:
            line += f"; {fix}"
        super().__init__(" ".join(line.split()))


class Refused(MmditError, ValueError):
    """Bad input or a bad config, found before any work began (exit code 2)."""

    exit_code = 2


class OverBudget(MmditError):
    """The work is done, but more was skipped than the budget allows (exit code 3)."""

    exit_code = 3


class Stopped(MmditError):
    """The work ended early; the last good state is intact (exit code 4)."""

    exit_code = 4
