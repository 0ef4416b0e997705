"""A real S3 server for tests: versitygw, on files of a directory."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.support.ports import free_address

PROGRAM = "versitygw"
MISSING = (
    f"{PROGRAM} is not on PATH: go install github.com/versity/versitygw/cmd/versitygw@v1.8.0 "
    "(Apache-2.0; a few minutes)"
)
DEADLINE_S = 20.0


def is_here() -> bool:
    return shutil.which(PROGRAM) is not None


class S3Server:
    """One bucket, `archive`. `environment` is what a node needs to use it."""

    def __init__(self, directory: Path) -> None:
        self._root = directory / "s3"
        self.bucket = self._root / "archive"
        self.bucket.mkdir(parents=True)
        self._log = directory / "s3.log"
        self._address = free_address()
        self._process: subprocess.Popen[bytes] | None = None
        self.environment = {
            "AWS_ACCESS_KEY_ID": "tester",
            "AWS_SECRET_ACCESS_KEY": "tester-secret",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://{self._address}",
        }

    def start(self) -> None:
        """Start it, and wait until it answers."""
        keys = {"ROOT_ACCESS_KEY": "tester", "ROOT_SECRET_KEY": "tester-secret"}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [PROGRAM, "--port", self._address, "posix", str(self._root)],
                env={**os.environ, **keys},
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + DEADLINE_S
        while not self._answers():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < end, "the S3 server does not answer"
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"http://{self._address}/archive", timeout=2).close()
        except urllib.error.HTTPError:
            return True  # it wants to know who asks
        except OSError:
            return False
        return True

    def stop(self) -> None:
        """End it; its objects stay."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
