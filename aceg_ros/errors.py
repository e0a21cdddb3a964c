"""The one exception type that users see."""


class UserError(Exception):
    """Bad input from outside: the message is one sentence that says what is wrong and what to do.

    The command line prints it and exits with 2; the node puts it into its status.
    """
