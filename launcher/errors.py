"""Errors whose text is the whole message for the person at the terminal."""


class LaunchError(Exception):
    """Starting failed; the message names what is wrong and what to do."""

    exit_code = 1


class SettingError(LaunchError):
    """A setting or file is wrong; nothing was started."""

    exit_code = 2


class StopRequested(BaseException):
    """Ctrl-C or SIGTERM came; not an error, so `except Exception` lets it pass."""
