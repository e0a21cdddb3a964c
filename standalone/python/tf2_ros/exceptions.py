# SPDX-License-Identifier: Apache-2.0
"""What a lookup can fail with."""


class TransformException(Exception):
    """Base of all of them."""


class LookupException(TransformException):
    """A frame is not known."""


class ConnectivityException(TransformException):
    """No chain of transforms joins the two frames."""


class ExtrapolationException(TransformException):
    """The time lies outside what has been received."""


class InvalidArgumentException(TransformException):
    """A frame name or a transform that cannot be used."""


class TimeoutException(TransformException):
    """Waiting took too long."""
