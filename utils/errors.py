"""The one exception that users see."""


class UserError(Exception):
    """Bad input: one clear sentence that names the file or flag and how to fix it.

    Every command prints it in one line, without a traceback, and exits with status 2 (`utils.command.run_command`).
    """
