"""`python -P -m deploy.embedded.broker_cache`: a cache with which a broker's JVM starts in half the time.

It holds Kafka's classes as they are once loaded and linked (ahead-of-time cache, JEP 514), recorded from a broker of its own that
is started, written to and stopped: a quarter of a minute, once a machine. Brokers use it where it is (`deploy.embedded.kafka`);
a JVM that cannot, because it is another, says nothing and goes without.

If we die here: the cache is renamed into place when complete.
"""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from deploy.embedded import kafka
from deploy.embedded.packages import broker_cache, cache_dir, exclusive, java, kafka_classpath
from deploy.embedded.ports import free_ports
from deploy.embedded.process import RunningProcess
from deploy.embedded.user import service_user
from deploy.errors import DeployError, PackageError
from streams.admin import ensure_topics
from streams.publish import RecordStream
from streams.settings import KafkaSettings
from streams.topics import topic_name

_START_S = 120.0
_STOP_S = 300.0  # the JVM makes the cache before it ends


def make(progress: Callable[[str], None] = lambda _: None) -> Path:
    """The cache, made where it is missing. Raises `DeployError`."""
    user = service_user()
    target = broker_cache(java(user, progress), kafka_classpath(progress))
    with exclusive("broker-cache"), tempfile.TemporaryDirectory(dir=cache_dir()) as scratch:
        if target.exists():
            return target
        progress("recording how a broker starts")
        folder = Path(scratch)
        folder.chmod(0o755)
        port, controller_port = free_ports(2)
        broker = kafka.Broker(folder / "broker", port, controller_port, user=user, death_signal=signal.SIGKILL)
        command = kafka.prepare(broker)
        made = broker.directory / "cache.aot"
        recording = [command.argv[0], f"-XX:AOTCacheOutput={made}", *command.argv[1:]]
        process = RunningProcess(replace(command, argv=recording, stop_timeout=_STOP_S))
        try:
            settings = KafkaSettings(broker.bootstrap)
            process.wait_ready(lambda: kafka.ready(settings), _START_S)
            ensure_topics(settings, [("jobs", None)])
            with RecordStream(settings, topic_name(settings.prefix, "jobs")) as stream:
                stream.send(b"k", b"v", [])
        finally:
            process.stop()
        if not made.exists():
            raise PackageError("package-unavailable", f"the JVM made no cache, see {broker.log}")
        made.chmod(0o644)
        made.rename(target)
    return target


if __name__ == "__main__":
    try:
        print(make(lambda doing: print(doing, file=sys.stderr)))
    except DeployError as error:
        sys.exit(str(error))
