"""The exceptions that end in one line for the user instead of a traceback.

A request that fails is data (see `record.ErrorKind`), and a bug is a plain exception with its traceback. The rest is
invalid input or an environment that does not fit: a `LoadgenError`.
"""


class LoadgenError(Exception):
    """An error of one line: what happened, where, and what to do. The command line prints it and exits with 2."""


class NotReadyError(LoadgenError):
    """The server did not complete its warm-up, or was not prepared for a run in time."""


class MeterError(Exception):
    """An energy source that cannot be opened, or a reading that failed: the reason, in one line.

    During a run the sampler counts it and tries again; the run then has a gap.
    """


class NoAnswerError(MeterError):
    """A source that does not answer. It may later."""
