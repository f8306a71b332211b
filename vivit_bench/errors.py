"""Errors a user can cause or must be told about.

The command line turns each into one line on stderr and an exit code; everything
else that escapes is a bug and keeps its traceback.
"""


class VivitBenchError(Exception):
    """A run failed for a stated reason (exit code 1).

    The message is one line: the value, the reason, and what to do next.
    """

    exit_code = 1


class UsageError(VivitBenchError):
    """The request itself is wrong: a bad value, name, file or model (exit code 2)."""

    exit_code = 2


class CertificateError(VivitBenchError):
    """A result failed its check by plain autograd; nothing of it is returned or stored."""


class StorageError(VivitBenchError):
    """A file cannot be written, or what was written is gone."""


class Stopped(BaseException):
    """A signal asks the process to end; not an `Exception`, so that nothing swallows it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
