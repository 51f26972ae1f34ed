"""A real S3 server for tests: versitygw (Apache-2.0), built once from its Go module into the cache, on a free port, with TLS.

    python -P -m tests.stack.gateway      builds it, as CI does before the tests

1.8.0 carries out `If-None-Match`; 1.0.14, for one, ignores it and is refused by the store's self-test. Where there is no Go, or
the module cannot be had, `gateway_program` raises `NoGateway` with the reason, and tests skip.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from agents.repository.stores.s3 import Bucket
from deploy.certificates import Certificate, make
from deploy.embedded.packages import cache_dir, exclusive
from deploy.embedded.ports import accepts, free_ports
from deploy.embedded.process import Command, RunningProcess

VERSION: Final = "v1.8.0"
_PACKAGE: Final = f"github.com/versity/versitygw/cmd/versitygw@{VERSION}"
_BUILD_TIMEOUT: Final = 900.0
_START_TIMEOUT: Final = 90.0


class NoGateway(Exception):
    """This machine cannot have the server; the message says why."""


def gateway_program() -> Path:
    """The program, built if it is not in the cache yet: a minute of both cores."""
    program = cache_dir() / f"versitygw-{VERSION}"
    with exclusive("versitygw"):
        if program.exists():
            return program
        go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
        if go is None:
            raise NoGateway("there is no Go to build versitygw with")
        scratch = cache_dir() / f"versitygw-{secrets.token_hex(4)}.new"
        environ = {**os.environ, "GOBIN": str(scratch), "GOTOOLCHAIN": "local"}
        environ.setdefault("HOME", str(scratch))
        try:
            done = subprocess.run(
                [go, "install", "-ldflags", "-s -w", _PACKAGE],
                env=environ,
                capture_output=True,
                text=True,
                timeout=_BUILD_TIMEOUT,
            )
            if done.returncode:
                raise NoGateway(f"versitygw could not be built: {done.stderr.strip()[-300:]}")
            (scratch / "versitygw").rename(program)
        except (OSError, subprocess.SubprocessError) as error:
            raise NoGateway(f"versitygw could not be built: {error}") from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return program


class Gateway:
    """One server. `directory`: its buckets are folders in it, its objects files: what a test may damage."""

    def __init__(
        self, directory: Path, program: Path, *, tls: bool = True, certificate: Certificate | None = None
    ) -> None:
        """Without `tls` something may be put between it and who asks it (`tests.stand_ins.s3_trouble`). `certificate`: another
        than a good one for 127.0.0.1 by an authority of its own."""
        self.directory = directory
        self.buckets = directory / "buckets"
        self.buckets.mkdir()
        for name in ("attributes", "versions"):
            (directory / name).mkdir()
        if tls and certificate is None:
            certificate = make(directory / "tls", ["127.0.0.1"])
        self.ca = certificate.ca if certificate else None
        self.scheme = "https" if certificate else "http"
        self.port = free_ports(1)[0]
        self._access, self._secret = "holdfast", secrets.token_urlsafe(24)
        self._command = Command(
            "versitygw",
            [
                *(str(program), "--port", f"127.0.0.1:{self.port}", "--quiet"),
                *(("--cert", str(certificate.certificate), "--key", str(certificate.key)) if certificate else ()),
                *("posix", "--sidecar", str(directory / "attributes"), "--versioning-dir", str(directory / "versions")),
                str(self.buckets),
            ],
            directory / "log",
            directory,
            {"ROOT_ACCESS_KEY": self._access, "ROOT_SECRET_KEY": self._secret},
            stop_timeout=5,
        )
        self._process: RunningProcess | None = None

    def start(self) -> None:
        self._process = RunningProcess(self._command)
        self._process.wait_ready(
            lambda: None if accepts("127.0.0.1", self.port) else "it does not listen", _START_TIMEOUT
        )

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()

    @property
    def process(self) -> RunningProcess:
        assert self._process is not None, "not started"
        return self._process

    def bucket(self, prefix: str = "", name: str = "repository") -> Bucket:
        """A bucket of it; a prefix of one's own keeps tests apart."""
        (self.buckets / name).mkdir(exist_ok=True)
        endpoint = f"{self.scheme}://127.0.0.1:{self.port}"
        return Bucket(
            endpoint, name, self._access, self._secret, prefix=prefix, ca=self.ca.read_text() if self.ca else ""
        )


if __name__ == "__main__":
    try:
        print(gateway_program())
    except NoGateway as reason:
        sys.exit(str(reason))
