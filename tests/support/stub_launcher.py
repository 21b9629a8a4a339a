"""The real launcher, with trivial commands instead of the API, the worker and Flower."""

import os
import sys

from launcher.children import Child
from launcher.parts import Parts
from launcher.up import main

_SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *_): pass
print("listening", flush=True)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
# Counts as having read models.yaml at SIGHUP, unless the file has a model "refused".
_API = """
import http.server, os, pathlib, signal, sys, time
from shared.config.models.loader import load_registry
loaded, failures = time.time(), 0
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
        if self.path == "/metrics":
            self.wfile.write(f"headrace_models_loaded_timestamp_seconds {loaded}\\n".encode())
            self.wfile.write(f'headrace_models_reloads_total{{result="failed"}} {failures}\\n'.encode())
    def log_message(self, *_): pass
def reload(*_):
    global loaded, failures
    if "refused" in load_registry(pathlib.Path(os.environ["HEADRACE_MODELS"])):
        failures += 1
    else:
        loaded = time.time()
    print("reloading", flush=True)
signal.signal(signal.SIGHUP, reload)
print("listening", flush=True)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
# Ends at SIGHUP if its model is not declared any more.
_WORKER = """
import os, signal, sys
from shared.config.models.loader import load_registry
def reload(*_):
    print("reloading", flush=True)
    if sys.argv[1] not in load_registry(__import__("pathlib").Path(os.environ["HEADRACE_MODELS"])):
        sys.exit(0)
signal.signal(signal.SIGHUP, reload)
print("consuming", flush=True)
while True:
    signal.pause()
"""


class StubParts(Parts):
    """Parts that start immediately. With `STUB_API_FAILS`, the API exits with an error message."""

    def migrate(self) -> Child:
        return self._child("migrate", ["-c", ""])

    def ensure_key(self, api_key: str) -> Child:
        code = "import os, sys; sys.exit(not os.environ['HEADRACE_API_KEY'].startswith('hr_'))"
        return self._child("key", ["-c", code], {"HEADRACE_API_KEY": api_key})

    def console_link(self, api_key: str) -> Child:
        return self._child("console", ["-c", f"print('{self.settings.api_url}/console/sign-in?token=stub')"])

    def api(self) -> Child:
        if "STUB_API_FAILS" in os.environ:
            return self._child("api", ["-c", "import sys; sys.exit('no table named jobs')"])
        return self._child("api", ["-c", _API, str(self.settings.port)])

    def workers(self) -> list[Child]:
        return [
            self._child(f"worker-{name}-1", ["-c", _WORKER, name], model=model)
            for name, model in self.registry.models.items()
        ]

    def flower(self, password: str) -> Child:
        return self._child("flower", ["-c", _SERVER, str(self.settings.flower_port)])


if __name__ == "__main__":
    sys.exit(main(StubParts))
