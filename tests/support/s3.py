"""An S3 server for tests: moto's server in a process of its own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass

import httpx

from tests.support.ports import free_port
from tests.support.waiting import eventually_sync

BUCKET = "headrace-tests"


@dataclass(frozen=True, slots=True)
class S3:
    """A bucket on a running server."""

    url: str

    @property
    def environment(self) -> dict[str, str]:
        """The usual environment variables."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_REGION": "eu-central-1",
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": "tests",
        }

    def keys(self, prefix: str = "") -> list[str]:
        """The keys of the objects in the bucket."""
        return self._listed({"list-type": "2", "prefix": prefix}, "Contents")

    def unfinished(self) -> list[str]:
        """The keys of multipart uploads that are neither completed nor aborted."""
        return self._listed({"uploads": ""}, "Upload")

    def _listed(self, query: dict[str, str], kind: str) -> list[str]:
        response = httpx.get(f"{self.url}/{BUCKET}", params=query).raise_for_status()
        root = ElementTree.fromstring(response.text)  # noqa: S314  # from our own server
        space = root.tag.partition("}")[0] + "}"
        return [item.text or "" for item in root.findall(f"{space}{kind}/{space}Key")]


@contextlib.contextmanager
def running_s3() -> Iterator[S3]:
    """Start a server with an empty bucket."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    s3 = S3(f"http://127.0.0.1:{port}")
    try:

        def ready() -> bool:
            assert process.poll() is None, "moto's server has ended"
            with contextlib.suppress(httpx.TransportError):
                return httpx.put(f"{s3.url}/{BUCKET}").status_code == 200
            return False

        eventually_sync(ready, "the S3 server responds", within_s=60)
        yield s3
    finally:
        process.terminate()
        process.wait()
