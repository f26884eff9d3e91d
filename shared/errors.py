"""The error a user can mend: wrong data, a wrong store, a wrong option.

Anything else that goes wrong is a bug and keeps its traceback. Bad *model answers* are neither: they are counted
statuses (`shared.types.AnswerStatus`).
"""


class DataError(ValueError):
    """Input that cannot be used; the message is one line naming file, row and value.

    The command line prints the message alone and exits with status 2.
    """
