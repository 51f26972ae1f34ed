"""`python -P -m api --config FILE`: the API as a process. Ends on SIGTERM or SIGINT: streams first, then calls under
way."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from pathlib import Path
from types import FrameType

import uvicorn

from api.app import build
from api.site import Site
from streams.errors import StreamError
from streams.settings import Settings, is_loopback, load

GRACE_S = 10


class _Server(uvicorn.Server):
    """Ends event streams as soon as it is told to stop: they would else hold it up until they are cut."""

    def __init__(self, config: uvicorn.Config, site: Site) -> None:
        super().__init__(config)
        self._site = site

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._site.stopping.set()
        super().handle_exit(sig, frame)


def server(settings: Settings) -> uvicorn.Server:
    """The server of a site, not yet running. Raises `StreamError` (`settings-plaintext`, and what opening secrets
    raises)."""
    api = settings.api
    if api.tls_cert is None and not is_loopback(api.host):
        # `load` refuses this too; settings may also be made by hand.
        raise StreamError(
            "settings-plaintext",
            f"the API would listen on {api.host} without TLS",
            "name a certificate in `api.tls_cert` and its key in `api.tls_key`",
        )
    site = Site(settings)
    config = uvicorn.Config(
        build(site),
        host=api.host,
        port=api.port,
        ssl_certfile=api.tls_cert,
        ssl_keyfile=str(api.tls_key) if api.tls_key else None,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        http="h11",
        ws="none",
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE_S,
        h11_max_incomplete_event_size=65_536,
        limit_concurrency=512,
    )
    return _Server(config, site)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -P -m api", description="The API of a Holdfast site.")
    parser.add_argument("--config", required=True, type=Path, help="the site's holdfast.toml")
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    given = parser.parse_args(argv)
    logging.basicConfig(
        level=given.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    try:
        running = server(load(given.config))
    except StreamError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    # The server sends itself again, when it has ended, what it was told to end by; that is not to kill it then.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    running.run()
    return 0 if running.started else 3


if __name__ == "__main__":
    sys.exit(main())
