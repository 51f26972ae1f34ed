"""The API on real Kafka and PostgreSQL, in a thread of the test, with what stands in for the rest of a site around it.

    RunningApi     the API itself on a port of its own; `.client(role)` speaks to it and holds every answer to the
    contract Scribe         writes events into the log, as agents do CapturedLog    writes real steps of a server
    into the capture topic, and granules, as capture and indexer do

`RunningApi.apply()` brings the read models up to the log's end with the bulk reader, so no processors run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import httpx
from blake3 import blake3

from agents.capture.keys import KeyCollector, Recorded
from agents.mysql.definitions import read_definitions, schema_version
from api import contract
from api.__main__ import server
from api.auth import tokens
from api.auth.roles import OPERATIONS
from deploy.demo.server import DatabaseServer
from projections import batches, generations, log, offsets
from projections.database import connect
from projections.migrate import migrate
from projections.views import VIEWS
from streams.admin import ensure_topics, topic_id
from streams.capture_log import StepFragment
from streams.capture_record import lineage_digest, record_digest, unsettled_header
from streams.events import (
    CommitsRecorded,
    EpochStarted,
    Event,
    GranuleClosed,
    Landmark,
    LineageStarted,
    SchemaRecorded,
    SourceChanged,
    SourceDefined,
    TableCount,
    TokenIssued,
)
from streams.formats.binlog.step import StepSummary, summarise
from streams.ids import now_us, uuid7
from streams.key_runs import PURPOSE
from streams.publish import Publisher, RecordStream
from streams.secrets import SecretStore
from streams.settings import Settings
from streams.topics import CATALOGUE, topic_name
from tests.stand_ins.binlog_log import BinlogLog

PATIENCE_S = 180.0
HTTP = httpx.Client(verify=False, limits=httpx.Limits(max_keepalive_connections=0))
"""For single questions in clear: a client of their own would read all authorities each time."""
T = TypeVar("T")


def eventually(question: Callable[[], T], *, patience_s: float = PATIENCE_S) -> T:
    """The first answer that is true, asked again until then."""
    deadline = time.monotonic() + patience_s
    while True:
        answer = question()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"still {answer!r} after {patience_s} s"
        time.sleep(0.02)


class Scribe:
    """Publishes events and waits until they are durable."""

    def __init__(self, settings: Settings) -> None:
        self.publisher = Publisher(settings, "test")

    def write(self, *events: Event, of: str | None = None) -> None:
        self.publisher.sent_and_durable(*events, of=of)

    def close(self) -> None:
        self.publisher.close()


def prepare(settings: Settings) -> None:
    """Topics and empty views, as `holdfast up` and the processors make them."""
    ensure_topics(settings.kafka, [(t.name, None) for t in CATALOGUE if t.per is None])
    with contextlib.closing(connect(settings.postgres)) as conn:
        migrate(conn)
        generations.ensure(conn)


def apply_views(settings: Settings, *names: str) -> None:
    """Bring views up to where the log ends now."""
    with contextlib.closing(connect(settings.postgres)) as conn:
        for name in names or VIEWS:
            view = VIEWS[name]
            extents = log.extents(settings.kafka, log.full_topics(settings.kafka, view))
            generation = offsets.live_generation(conn, name)
            offsets.register(conn, name, generation, log.starts(name, extents))
            ends = {place: extent.end for place, extent in extents.items()}
            for batch in log.replay(settings.kafka, offsets.live(conn, name), ends, threading.Event()):
                batches.apply_live(conn, view, batch.messages, batch.read)


class RunningApi:
    """An API that runs. Tokens are issued through the log, one a role."""

    def __init__(self, settings: Settings, *, ready: bool = True) -> None:
        prepare(settings)
        self.settings = settings
        self.scribe = Scribe(settings)
        self._tokens: dict[str, str] = {}
        self.server = server(settings)
        self._thread = threading.Thread(target=self.server.run, name="api", daemon=True)
        self._thread.start()
        eventually(lambda: self.server.started)
        if ready:
            eventually(lambda: HTTP.get(f"{self.url}/v1/health").status_code == 200)

    @property
    def url(self) -> str:
        return self.settings.api.url

    def apply(self, *names: str) -> None:
        apply_views(self.settings, *names)

    def token(self, role: str, **more: Any) -> str:
        """A token of that role, known to the API."""
        if role == "admin" and not more:
            return eventually(lambda: tokens.read_admin_file(self.settings.data_dir)) or ""
        secret = None if more else self._tokens.get(role)
        if secret is None:
            secret = tokens.new_secret()
            digest = tokens.digest(secret)
            event = {"token": uuid7(), "actor": f"a-{role}", "role": role, "digest": digest, "issued_us": now_us()}
            self.scribe.write(TokenIssued(**{**event, "by": "test", **more}))
            headers = {"Authorization": f"Bearer {secret}"}
            eventually(lambda: HTTP.get(f"{self.url}/v1/self", headers=headers).json().get("code") != "token-unknown")
            if not more:
                self._tokens[role] = secret
        return secret

    def client(self, role: str | None = "admin") -> Client:
        return Client(self.url, self.token(role) if role else None)

    def close(self) -> None:
        self.scribe.close()
        self.server.should_exit = True
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the API did not end"


class Client:
    """Speaks to the API and checks that every answer is what the OpenAPI document promises."""

    def __init__(self, url: str, secret: str | None) -> None:
        self.url = url
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        self.http = httpx.Client(base_url=url, headers=headers, timeout=PATIENCE_S, verify=False)

    def call(self, method: str, path: str, **more: Any) -> httpx.Response:
        answer = self.http.request(method, path, **more)
        check_answer(method, path, answer)
        return answer

    def get(self, path: str, **params: Any) -> Any:
        """The body of a 200."""
        answer = self.call("GET", path, params={k: v for k, v in params.items() if v is not None})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, body: Mapping[str, Any] | None = None, status: int = 202) -> Any:
        answer = self.call("POST", path, json=body) if body is not None else self.call("POST", path)
        assert answer.status_code == status, answer.text
        return answer.json()

    def refused(self, method: str, path: str, status: int, **more: Any) -> str:
        """The code of the problem."""
        answer = self.call(method, path, **more)
        assert answer.status_code == status, answer.text
        return str(answer.json()["code"])

    @contextlib.contextmanager
    def events(self, path: str, **more: Any) -> Iterator[Iterator[tuple[str, str, Any]]]:
        """Server-sent events as (event, id, data); comments as ("", "", text)."""
        with self.http.stream("GET", path, timeout=httpx.Timeout(10, read=PATIENCE_S), **more) as answer:
            assert answer.status_code == 200, answer.read()
            assert answer.headers["content-type"].startswith("text/event-stream")
            yield parse_events(answer.iter_lines())


def parse_events(lines: Iterator[str]) -> Iterator[tuple[str, str, Any]]:
    event = number = data = ""
    for line in lines:
        if line.startswith(":"):
            yield "", "", line[1:].strip()
        elif line.startswith("event: "):
            event = line[7:]
        elif line.startswith("id: "):
            number = line[4:]
        elif line.startswith("data: "):
            data = line[6:]
        elif not line and event:
            yield event, number, json.loads(data)
            event = number = data = ""


_ROUTES = [(o, re.compile(re.sub(r"\{\w+\}", "[^/]+", o.path))) for o in OPERATIONS]


def check_answer(method: str, path: str, answer: httpx.Response) -> None:
    """An answer's status, media type and body are those of the document."""
    for operation, pattern in _ROUTES:
        if operation.method == method and pattern.fullmatch(path.partition("?")[0]):
            break
    else:
        return
    responses = contract.document()["paths"][operation.path][method.lower()]["responses"]
    status = str(answer.status_code)
    name = status if status in responses else "default"
    assert name in responses, f"{operation.id} promises no {status}"
    promised = contract.resolve(responses[name]).get("content", {})
    if not promised:
        assert answer.content == b""
        return
    kind = answer.headers["content-type"].partition(";")[0]
    assert kind in promised, f"{operation.id} {status} answers {kind}"
    if kind.endswith("json"):
        pointer = _pointer(responses[name], operation.path, method.lower(), name, kind)
        errors = [
            f"{list(e.absolute_path)}: {e.message}" for e in contract.validator(pointer).iter_errors(answer.json())
        ]
        assert not errors, f"{operation.id} {status}: {errors[:3]}"


def _pointer(response: Mapping[str, Any], path: str, method: str, status: str, kind: str) -> str:
    if "$ref" in response:
        base = str(response["$ref"]).removeprefix("#")
    else:
        base = contract._pointer("paths", path, method, "responses", status)
    return base + contract._pointer("content", kind, "schema")


# --- a captured source -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Written:
    """A step as it was written into the log."""

    ordinal: int
    payload: bytes
    summary: StepSummary


class CapturedLog:
    """A source whose steps are really in the log: what a server writes goes into `capture.<source>` when told to.

    `pull()` writes what is new, `close_granule()` indexes everything written so far, as capture and indexer would.
    """

    def __init__(self, api: RunningApi, server: DatabaseServer, source: str = "shop") -> None:
        self.api, self.source, self.server = api, source, server
        kafka = api.settings.kafka
        ensure_topics(kafka, [("capture", source), ("schema", source)])
        self.admin = server.connect()
        self.binlog = BinlogLog(self.admin, server.datadir)
        self.lineage = uuid7()
        self.written: list[Written] = []
        self.closed = 0
        self._topic = topic_name(kafka.prefix, "capture", source)
        self._stream = RecordStream(kafka, self._topic)
        self._digest = lineage_digest(self.lineage, "")
        self._offsets = 0
        self._starts: list[int] = []
        self._captured: list[int] = []
        self._recorded: list[SchemaRecorded] = []
        at = now_us()
        api.scribe.write(
            SourceDefined(
                source=source, kind=server.kind, host="127.0.0.1", port=server.port, defined_us=at, by="test",
                accounts={"capture": "hf_capture", "rollback": "hf_rollback"},
            ),
            SourceChanged(
                source=source, lineage=self.lineage, epoch=1, state="capturing", at_us=at, by="test",
                server_version=server.version, position=self.binlog.began[2],
            ),
        )  # fmt: skip
        self._send(
            LineageStarted(
                source=source, lineage=self.lineage, epoch=1, position="", server_id=1, server_version=server.version,
                reason="protected", baseline="", digest=self._digest, at_us=at,
            )
        )  # fmt: skip
        self._send(EpochStarted(source=source, lineage=self.lineage, epoch=1, agent="test", at_us=at))
        self._settle()

    def _send(self, event: Event) -> None:
        chain = self.api.scribe.publisher.chain
        value = chain.encode(event)
        self._stream.send(event.key.encode(), value, [*chain.headers(event), unsettled_header(0)])
        self._offsets += 1

    def _settle(self) -> None:
        assert self._stream.wait(PATIENCE_S) == self._stream.sent

    def execute(self, *statements: str) -> None:
        """Run statements on the source, each a transaction, and write the steps."""
        with self.admin.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
        self.pull()

    def pull(self, each: int = 100) -> list[Written]:
        """Write what the source has committed since; records of at most `each` steps, account statements alone."""
        self.binlog.refresh()
        new = self.binlog.recorded[len(self.written) :]
        before = len(self.written)
        group: list[Any] = []
        for step in new:
            assert step.payload is not None
            summary = summarise(step.preamble, step.payload)
            self.written.append(Written(step.ordinal, step.payload, summary))
            if summary.secret and group:
                self._record(group)
                group = []
            group.append(step)
            if summary.secret or len(group) >= each:
                self._record(group)
                group = []
        if group:
            self._record(group)
        self._settle()
        return self.written[before:]

    def _record(self, steps: list[Any]) -> None:
        ends, total = b"", 0
        for step in steps:
            total += len(step.payload)
            ends += total.to_bytes(4, "little")
        payload = b"".join(s.payload for s in steps)
        secret = self.written[steps[0].ordinal - 1].summary.secret
        record = CommitsRecorded(
            source=self.source, lineage=self.lineage, epoch=1, first_ordinal=steps[0].ordinal,
            last_ordinal=steps[-1].ordinal, step_ends=ends, events=len(steps), before="", after=steps[-1].gtid,
            last_step_digest=blake3(steps[-1].payload).digest(), server_id=1, file="", offset=0, captured_us=now_us(),
            previous_record=self._digest, digest=b"", preamble=steps[0].preamble, payload=payload, accounts=secret,
        )  # fmt: skip
        record = replace(record, digest=record_digest(record))
        self._digest = record.digest
        self._starts += [self._offsets] * len(steps)
        self._captured += [record.captured_us] * len(steps)
        self._send(record)

    def record_schema(self) -> None:
        """Say in the schema topic how all tables are defined now, as of the newest step."""
        definitions = tuple(read_definitions(self.admin))
        event = SchemaRecorded(
            source=self.source, lineage=self.lineage, ordinal=len(self.written), position="", full=True, origin="live",
            statement="", tables=definitions, version=schema_version(definitions), at_us=now_us(),
        )  # fmt: skip
        self._recorded.append(event)
        self.api.scribe.write(event)

    def close_granule(self, *, apply: bool = True, keys: bool = False) -> None:
        """Index what is written and not yet indexed; `keys`: with its key run, by what `record_schema` said."""
        new = self.written[self.closed :]
        if not new:
            return
        if keys:
            self._collector = KeyCollector(
                self.source, self.lineage, 1, *SecretStore(self.api.settings).derived(PURPOSE),
                Recorded(self.lineage, self._recorded),
            )  # fmt: skip
            for logged in self.binlog.recorded[self.closed : new[-1].ordinal]:
                self._collector.add(
                    StepFragment(logged.ordinal, 0, True, logged.preamble, logged.payload, False, 0, "", 0)
                )
        tables: dict[tuple[str, str], list[int]] = {}
        marks: list[Landmark] = []
        for step in new:
            for name, change in step.summary.changes.items():
                counts = tables.setdefault(name, [0, 0, 0, 0])
                for i, n in enumerate((1, *change)):
                    counts[i] += n
            marks += _landmarks(step)
        first, last = new[0], new[-1]
        digest = hashlib.sha256(b"".join(s.payload for s in new)).digest()
        event = GranuleClosed(
            source=self.source, lineage=self.lineage, epoch=1, first_ordinal=first.ordinal, last_ordinal=last.ordinal,
            first_time_us=first.summary.commit_time * 1_000_000, last_time_us=last.summary.commit_time * 1_000_000,
            captured_us=self._captured[-1], first_position=first.summary.gtid, last_position=last.summary.gtid,
            payload_bytes=sum(len(s.payload) for s in new), events=sum(s.summary.events for s in new),
            tables=tuple(TableCount(s, t, *c) for (s, t), c in tables.items()), landmarks=tuple(marks),
            topic_id=topic_id(self.api.settings.kafka, self._topic), first_offset=self._starts[self.closed],
            last_offset=self._starts[-1], digest=digest,
        )  # fmt: skip
        self.api.scribe.write(*((self._collector.close(event), event) if keys else (event,)))
        self.closed = last.ordinal
        if apply:
            self.api.apply("timeline")

    def close(self) -> None:
        self.admin.close()
        self._stream.close()


def _landmarks(step: Written) -> list[Landmark]:
    s = step.summary
    if s.markers:
        return [Landmark(step.ordinal, "undo" if s.undo else "marker", plan=s.markers[0])]
    if s.own:
        return [Landmark(step.ordinal, "own")]
    if s.kind in ("ddl", "statement", "account", "xa", "incident"):
        return [Landmark(step.ordinal, s.kind, "" if s.secret else "; ".join(s.statements))]
    return []
