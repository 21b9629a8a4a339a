"""Errors whose text is printed to the terminal as is."""


class LaunchError(Exception):
    """The start failed; the message gives the cause and the fix."""

    exit_code = 1


class SettingError(LaunchError):
    """A setting or file is invalid; nothing was started."""

    exit_code = 2


class StopRequested(BaseException):
    """Ctrl-C or SIGTERM was received. Not an error, so `except Exception` does not catch it."""
