"""Checks that ports are free."""

import socket

from launcher.errors import SettingError


def check_free(host: str, port: int, host_setting: str, port_setting: str) -> None:
    """Raise `SettingError`, naming the setting to change, unless the port is free."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror:
        raise SettingError(f"{host_setting}={host} is not an address of this machine.") from None
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except PermissionError:
            raise SettingError(f"port {port} ({port_setting}) requires root; set {port_setting} above 1023.") from None
        except OSError as error:
            if error.errno == 99:  # EADDRNOTAVAIL
                raise SettingError(f"{host_setting}={host} is not an address of this machine.") from None
            raise SettingError(
                f"port {port} ({port_setting}) is in use; set {port_setting} to another port:  "
                f"{port_setting}={port + 1 if port < 65535 else port - 1} make up"
            ) from None
