"""The one exception a user is meant to see."""


class UserError(Exception):
    """Bad input from the user: one clear sentence that names the file or flag and the mend.

    `run.py` and every command of the project print it without a traceback and exit with status 2.
    """
