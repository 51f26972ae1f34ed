"""Repositories: made, looked after and adopted by the agent that owns them. Secrets go into the secret store; commands
carry references."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from api import shapes
from api.calls import Call, Reply
from api.commands import ask
from api.errors import ApiError, not_found
from projections.views import repositories as view
from projections.views.base import Connection
from projections.views.repositories import Repository
from streams.errors import StreamError
from streams.ids import slug


def known(call: Call, conn: Connection, named: str = "") -> Repository:
    """The repository that the path names (or `named`). Raises `ApiError` 404 (`repository-unknown`)."""
    name = named or call.text("repository")
    call.site.catch_up(conn, "repositories", "repository", name)
    found = view.repository(conn, name)
    if found is None:
        raise not_found("repository", name, "`holdfast repository list` shows them")
    return found


def _moment(call: Call) -> int | None:
    text = call.parameters["as_of"]
    return shapes.microseconds(text) if text else None


def list_all(call: Call) -> Reply:
    with call.site.views() as conn:
        call.site.catch_up(conn, "repositories", "repository", "")
        as_of = _moment(call)
        rows = view.repositories(conn, as_of_us=as_of)
        return Reply({"items": [shapes.repository(r, view.holding(conn, r.repository, as_of_us=as_of)) for r in rows]})


def show(call: Call) -> Reply:
    with call.site.views() as conn:
        found, as_of = known(call, conn), _moment(call)
        if as_of is not None and found.defined_us > as_of:
            raise not_found("repository", found.repository, f"there was none before {shapes.time(found.defined_us)}")
        return Reply(shapes.repository(found, view.holding(conn, found.repository, as_of_us=as_of)))


def add(call: Call) -> Reply:
    body = call.body
    if body["block_size"] & (body["block_size"] - 1):
        raise ApiError(422, "block-size-invalid", f"{body['block_size']} is no power of two", "say 131072 or 262144")
    if body.get("passphrase") and not body["encrypted"]:
        raise ApiError(422, "passphrase-unexpected", "what is not encrypted has no passphrase", "leave one of them out")
    parameters = {k: body[k] for k in ("encrypted", "block_size", "dedupe", "keep", "dry_run", "unmounted")}
    return _new(call, "repository.add", parameters)


def adopt(call: Call) -> Reply:
    if call.body.get("passphrase") and call.body.get("recovery_code"):
        raise ApiError(422, "secrets-clash", "a passphrase and a recovery code are different keys", "give one of them")
    return _new(call, "repository.adopt", {})


def _new(call: Call, kind: str, parameters: Mapping[str, Any]) -> Reply:
    """The secrets are kept before the command that refers to them is published: killed in between, secrets lie there that
    nothing refers to."""
    body = call.body
    name = slug(body["name"])
    store = _store(body["store"], body.get("secret_key"))
    with call.site.views() as conn:
        call.site.catch_up(conn, "repositories", "repository", name)
        # One that is known is adopted again when the log has lost what its files say.
        if kind == "repository.add" and view.repository(conn, name) is not None:
            raise ApiError(
                409,
                "repository-exists",
                f"there is a repository {name!r}",
                f"`holdfast repository show {name}`; another place needs another name",
            )
    secrets = {
        purpose: call.site.secrets.put(f"repositories/{name}/{purpose}", body[field].encode())
        for field, purpose in (("passphrase", "passphrase"), ("recovery_code", "code"), ("secret_key", "store"))
        if body.get(field)
    }
    job = ask(call, kind, f"repository/{name}", {**parameters, "name": name, "store": store, "secrets": secrets})
    return Reply({"job": job}, status=202, about=name, note={"job": job})


_NEEDED = {"local": {"path"}, "s3": {"endpoint", "bucket", "access_key"}}
_ALLOWED = {"local": {"kind", "path"}, "s3": {"kind", "endpoint", "bucket", "access_key", "region", "prefix", "tls_ca"}}


def _store(store: Mapping[str, Any], secret_key: str | None) -> dict[str, Any]:
    kind = store["kind"]
    missing, strange = _NEEDED[kind] - store.keys(), store.keys() - _ALLOWED[kind]
    if missing or strange:
        wrong = ", ".join(sorted(missing or strange))
        raise ApiError(
            422,
            "store-invalid",
            f"a {kind} store {'needs' if missing else 'has no'} {wrong}",
            "local: path; s3: endpoint, bucket, access_key, and region, prefix and tls_ca if need be",
        )
    if (kind == "s3") != bool(secret_key):
        raise ApiError(422, "store-invalid", "an S3 store, and only that, has a secret_key")
    _certificates(store)
    return dict(store)


def _certificates(store: Mapping[str, Any]) -> None:
    """What is kept in the log must be what it says it is, and no private key that stood in the same file."""
    given = store.get("tls_ca", "")
    if given and ("-----BEGIN CERTIFICATE-----" not in given or "PRIVATE KEY" in given):
        raise ApiError(422, "ca-invalid", "tls_ca is to hold certificates (PEM) and nothing else", "leave out keys")


def _ask(call: Call, kind: str, parameters: Mapping[str, Any], *, beside: bool = False) -> Reply:
    """`beside`: what may take long and can go on while the repository's other commands are carried out."""
    with call.site.views() as conn:
        name = known(call, conn).repository
    asset = f"{kind.partition('.')[2]}/{name}" if beside else f"repository/{name}"
    job = ask(call, kind, asset, {"repository": name, **parameters})
    return Reply({"job": job}, status=202, note={"job": job})


def move(call: Call) -> Reply:
    with call.site.views() as conn:
        found = known(call, conn)
    node = call.body["node"]
    if found.node == node:
        raise ApiError(409, "repository-there", f"repository {found.repository} is node {node}'s already")
    parameters = {"repository": found.repository, "node": node}
    job = ask(call, "repository.move", f"repository/{found.repository}", parameters, node=node)
    return Reply({"job": job}, status=202, note={"job": job, "node": node})


def remove(call: Call) -> Reply:
    return _ask(call, "repository.remove", {})


def change(call: Call) -> Reply:
    """What is left out stays as it is."""
    body = dict(call.body)
    secret_key, store = body.pop("secret_key", None), dict(body.get("store") or {})
    if not body and not secret_key:
        raise ApiError(422, "nothing-changed", "nothing is to be changed", "say what")
    with call.site.views() as conn:
        found = known(call, conn)
    strange = store.keys() - (_ALLOWED[found.store] - {"kind", "bucket", "prefix"})
    if strange or (secret_key and found.store != "s3"):
        wrong = ", ".join(sorted(strange)) or "secret_key"
        hint = "local: path; s3: endpoint, region, access_key, secret_key, tls_ca"
        raise ApiError(422, "store-invalid", f"a {found.store} store has no {wrong} that can be changed", hint)
    _certificates(store)
    secrets = _kept(call, "store", secret_key) if secret_key else {}
    return _ask(call, "repository.set", {**body, "secrets": secrets})


def verify(call: Call) -> Reply:
    return _ask(call, "repository.verify", call.body, beside=True)


def collect(call: Call) -> Reply:
    return _ask(call, "repository.collect", call.body)


def usage(call: Call) -> Reply:
    return _ask(call, "repository.usage", {}, beside=True)


def retention(call: Call) -> Reply:
    return _ask(call, "repository.retention", call.body)


def expire(call: Call) -> Reply:
    """Without a digest nothing is dropped: what goes is what was shown."""
    body = call.body
    if not body["dry_run"] and "digest" not in body:
        raise ApiError(422, "digest-missing", "which points go must have been looked at", "take a dry run's digest")
    if not body["dry_run"] and "keep" in body:
        raise ApiError(422, "rules-unexpected", "other rules can only be tried", "`holdfast repository retention`")
    return _ask(call, "point.expire", body, beside=bool(body["dry_run"]))


# --- keys -----------------------------------------------------------------------------------------------------------


def add_key(call: Call) -> Reply:
    kind, passphrase = call.body["kind"], call.body.get("passphrase")
    if (kind == "passphrase") != bool(passphrase):
        raise ApiError(422, "passphrase-missing", "a passphrase's key, and only that, is given a passphrase")
    secrets = _kept(call, "passphrase", passphrase) if passphrase else {}
    return _ask(call, "key.add", {"kind": kind, "secrets": secrets})


def list_keys(call: Call) -> Reply:
    return _ask(call, "key.list", {}, beside=True)


def drill(call: Call) -> Reply:
    return _ask(call, "key.drill", {"secrets": _kept(call, "code", call.body["recovery_code"])})


def remove_key(call: Call) -> Reply:
    return _ask(call, "key.remove", {"key": call.text("key")})


def _kept(call: Call, purpose: str, secret: str) -> dict[str, str]:
    """A reference, for a repository that is there: nothing is kept for one that is not."""
    with call.site.views() as conn:
        name = known(call, conn).repository
    return {purpose: call.site.secrets.put(f"repositories/{name}/{purpose}", secret.encode())}


def reveal(call: Call) -> Reply:
    """A recovery code that an agent made lies in the secret store until it is told, once."""
    with call.site.views() as conn:
        name = known(call, conn).repository
    key = call.text("key")
    secret = f"repositories/{name}/recovery-{key}"
    store = call.site.secrets
    versions = store.versions(secret)
    if not versions:
        raise ApiError(
            404,
            "code-unknown",
            f"there is no recovery code of key {key!r} that was not told yet",
            "a code is told once; make another with `holdfast repository key add --recovery`",
        )
    reference = f"{secret}@{versions[-1]}"
    try:
        code = store.get(reference).decode("ascii")
    except StreamError as error:
        raise ApiError(409, error.code, error.message, error.hint) from error
    for version in versions:
        store.remove(f"{secret}@{version}")
    return Reply({"key": key, "code": code})
