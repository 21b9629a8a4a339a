"""PostgreSQL URLs as libpq reads them: TLS, several hosts, Unix sockets.

SQLAlchemy's URLs know none of this, so the driver gets the URL itself, and its parameters are checked here first: a
misspelt `sslmode` must not mean a connection without TLS.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

FORM = "must be a PostgreSQL URL: postgresql://user:password@host:port/database"
CONNECT_TIMEOUT_S = 5.0
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_SESSION_ATTRIBUTES = ("any", "read-write", "read-only", "primary", "standby", "prefer-standby")
# Parameters that the driver reads from the URL.
_DRIVER = (
    "host",
    "port",
    "dbname",
    "user",
    "password",
    "passfile",
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "sslpassword",
    "sslcrl",
    "sslnegotiation",
    "ssl_min_protocol_version",
    "ssl_max_protocol_version",
    "target_session_attrs",
    "krbsrvname",
    "gsslib",
)
_FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl", "passfile")
# Parameters of libpq that have no effect here.
_IGNORED = ("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout")
# Parameters of libpq that the driver cannot do: only their values that demand nothing are accepted.
_UNSUPPORTED = {"channel_binding": ("disable", "prefer"), "gssencmode": ("disable", "prefer")}
_STATEMENT_CACHES = ("statement_cache_size", "prepared_statement_cache_size")
_TRANSLATED = (*_STATEMENT_CACHES, "application_name", "connect_timeout", "options")
_KNOWN = sorted((*_DRIVER, *_IGNORED, *_UNSUPPORTED, *_TRANSLATED))


def asyncpg_url(url: str) -> str:
    """Check a URL; return it with the scheme by which SQLAlchemy selects its driver.

    Raises:
        ValueError: it is not a PostgreSQL URL, or one of its parameters is unknown or invalid.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.partition("+")[0] not in ("postgresql", "postgres"):
        raise ValueError(FORM)
    url = f"postgresql+asyncpg://{rest}"
    driver_arguments(url)
    return url


def driver_arguments(url: str) -> dict[str, Any]:
    """The arguments of `asyncpg.connect` for a URL. Settings of the session are in `server_settings`.

    Raises:
        ValueError: as `asyncpg_url`.
    """
    parts = urlsplit(url)
    parameters = _parameters(parts.query)
    hosts = parameters.get("host") or parts.netloc.rpartition("@")[2]
    _check_ports(parts.netloc.rpartition("@")[2])
    settings = {"application_name": parameters.pop("application_name", None) or "headrace"}
    if options := parameters.pop("options", None):
        settings["options"] = options
    arguments: dict[str, Any] = {
        "timeout": _number("connect_timeout", parameters.pop("connect_timeout", None)) or CONNECT_TIMEOUT_S,
        "server_settings": settings,
    }
    for name in _STATEMENT_CACHES:
        if (size := _number(name, parameters.pop(name, None))) is not None:
            arguments[name] = int(size)
    if "," in hosts:  # of several servers, only the one that accepts writes is of use
        parameters.setdefault("target_session_attrs", "read-write")
    query = f"?{urlencode(parameters, quote_via=quote)}" if parameters else ""
    return {"dsn": f"postgresql://{parts.netloc}{parts.path}{query}", **arguments}


def _parameters(query: str) -> dict[str, str]:
    """The checked parameters that are left for the driver, and those that `driver_arguments` translates."""
    parameters: dict[str, str] = {}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError:
        raise ValueError(FORM) from None
    for name, value in pairs:
        if name == "ssl":  # the driver's own name
            parameters["sslmode"] = {"true": "require", "false": "disable"}.get(value.lower(), value)
        elif name == "database":
            parameters["dbname"] = value
        elif name == "host" and name in parameters:
            parameters[name] += f",{value}"
        elif name in _UNSUPPORTED:
            supported = _UNSUPPORTED[name]
            if value not in supported:
                raise ValueError(f"{name}={value} is not supported; remove it, or use {' or '.join(supported)}")
        elif name not in _KNOWN:
            raise ValueError(f"unknown parameter {name!r}; known are {', '.join(_KNOWN)}")
        elif name not in _IGNORED:
            parameters[name] = value
    _check_choice(parameters, "sslmode", _SSL_MODES)
    _check_choice(parameters, "target_session_attrs", _SESSION_ATTRIBUTES)
    for name in _FILES:
        check_file(name, parameters.get(name))
    if parameters.get("sslmode", "").startswith("verify-") and "sslrootcert" not in parameters:
        raise ValueError(f"sslmode={parameters['sslmode']} requires sslrootcert, the file of the CA's certificate")
    return parameters


def check_file(name: str, path: str | None) -> None:
    """Raises ValueError if a parameter names a file that cannot be read."""
    if path is None:
        return
    try:
        with Path(path).open("rb"):
            pass
    except OSError as error:
        raise ValueError(f"{name}: {path} cannot be read: {error.strerror}") from None


def _check_choice(parameters: dict[str, str], name: str, choices: tuple[str, ...]) -> None:
    if parameters.get(name, choices[0]) not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}")


def _check_ports(hosts: str) -> None:
    for host in hosts.split(","):
        port = host.rpartition("]")[2].partition(":")[2]
        if port and not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
            raise ValueError(FORM)


def _number(name: str, text: str | None) -> float | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f"{name} must be a number")
    return float(text)
