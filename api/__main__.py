"""`python -m api`: one API process."""

from __future__ import annotations

import sys
from typing import Any, cast

from shared.runtime.reload_signal import ReloadSignal


def main() -> int:
    reload_signal = ReloadSignal()
    reload_signal.install()  # before the imports, which take a second

    import uvicorn

    from api.app import create_app
    from api.http.server import Server
    from api.settings import ApiSettings
    from shared.config.settings import settings_or_exit
    from shared.domain.errors import HeadraceError
    from shared.postgres.schema_version import database_or_exit
    from shared.runtime.core_dumps import forbid_core_dumps
    from shared.telemetry.logs import configure_logging

    forbid_core_dumps()
    settings = settings_or_exit(ApiSettings)
    configure_logging(settings.log_level, settings.log_format)
    try:
        app = create_app(settings, reload_signal)
    except HeadraceError as error:
        print(error, file=sys.stderr)
        return 2
    database_or_exit(settings.database_url)
    server = Server(
        uvicorn.Config(
            app,
            http=cast(Any, app.state.connections.protocol),
            ws="none",
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            timeout_keep_alive=settings.keep_alive_s,
            server_header=False,
        ),
        settings.stop_grace_s,
    )
    server.run()
    return 0 if server.started else 1


if __name__ == "__main__":
    sys.exit(main())
