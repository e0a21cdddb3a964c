# SPDX-License-Identifier: Apache-2.0
"""The one exception type that users see."""


class UserError(Exception):
    """Unusable input: the message is one sentence that says what is wrong and what to do.

    The command line prints it and exits with code 2; the node publishes it in its status.
    """
