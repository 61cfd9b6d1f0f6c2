"""The one exception that is a user's business.

A request that fails is data (see `record.ErrorKind`). A bug is a plain exception with its traceback. What is left,
the world not being as asked, is a `LoadgenError`: the command line prints it as one line and exits with status 2.
"""


class LoadgenError(Exception):
    """What happened, where, and what to do about it, in one line."""


class MeterError(Exception):
    """A source that cannot be opened, or a reading that failed: the reason, in one line.

    While a run goes on the sampler counts it and tries again; the run has a gap.
    """
