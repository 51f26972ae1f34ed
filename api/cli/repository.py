"""`holdfast repository …`"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from api.cli.asking import REPOSITORY, Ask, asks, confirm
from api.cli.connection import segment
from api.cli.errors import UNWELL, USAGE, CliError, say_problems
from api.cli.secret import FILE, Given, certificates_of, stdin_option
from api.cli.times import MOMENT, ago, local

_VIEW_S = 30.0  # that read models may be behind a job
NO_WAIT = click.option("--no-wait", is_flag=True, help="Do not wait until it is done.")
_SIZE = re.compile(r"(\d{1,6})(K|KiB|M|MiB)", re.IGNORECASE)


def asked(ask: Ask, job: str, what: str, *, no_wait: bool) -> dict[str, Any] | None:
    """The finished job; None when nobody waits for it, which is then said."""
    if no_wait:
        ask.out({"job": job}, lambda: click.echo(f"asked for: holdfast job watch {job}"))
        return None
    return ask.wait(job, what)


class Bytes(click.ParamType):
    """`128K` to bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = _SIZE.fullmatch(value.strip())
        if found is None:
            self.fail(f"{value!r} is no size; say 128K or 1M", param, ctx)
        return int(found[1]) << (10 if found[2][0] in "kK" else 20)


_AUTHORITY = (
    "Certificates (PEM) of the authority that signed an S3 server's, and of those above it: these are trusted and no others."
    " Without it, those that the agent's system trusts."
)


def store_options(command: Any) -> Any:
    """Where a repository is: PLACE, and what an S3 place needs beside it."""
    options = (
        click.argument("place", metavar="PLACE"),
        click.option("--endpoint", metavar="URL", help="Of an S3 store: https://host:port."),
        click.option("--region", default="us-east-1", show_default=True, help="Of an S3 store."),
        click.option("--access-key", metavar="ID", help="Of an S3 store; its secret is read as said below."),
        click.option("--tls-ca", type=FILE, help=_AUTHORITY),
        click.option("--passphrase-file", type=FILE, help="Where the passphrase is. Without this it is asked for."),
        click.option("--secret-key-file", type=FILE, help="Where the secret of the S3 access key is. Likewise."),
        stdin_option,
    )
    for option in reversed(options):
        command = option(command)
    return command


def place_of(
    place: str, endpoint: str | None, region: str, access_key: str | None, tls_ca: Path | None
) -> dict[str, Any]:
    """PLACE as the API takes it. Raises `CliError`, `click.BadParameter`."""
    if not place.startswith("s3://"):
        if endpoint or access_key or tls_ca:
            raise click.BadParameter(
                "only an S3 place (s3://bucket/prefix) has an endpoint, keys and an authority", param_hint="PLACE"
            )
        if not place.startswith("/"):
            raise click.BadParameter(f"{place!r} must be an absolute path, or s3://bucket/prefix", param_hint="PLACE")
        return {"kind": "local", "path": place}
    parts = urlsplit(place)
    if not parts.netloc:
        raise click.BadParameter("say s3://bucket/prefix", param_hint="PLACE")
    if not endpoint or not access_key:
        raise CliError(
            "store-incomplete", "an S3 place needs its endpoint and an access key", "--endpoint URL --access-key ID",
            exit_code=USAGE,
        )  # fmt: skip
    return {
        "kind": "s3",
        "bucket": parts.netloc,
        "prefix": parts.path.strip("/"),
        "endpoint": endpoint,
        "region": region,
        "access_key": access_key,
        **({"tls_ca": certificates_of(tls_ca)} if tls_ca else {}),
    }


@click.command("add")
@click.argument("name")
@store_options
@click.option("--no-encryption", is_flag=True, help="Store in clear: whoever can read the place can read everything.")
@click.option("--no-passphrase", is_flag=True, help="Only this site's key opens it; make a recovery code at least.")
@click.option("--block-size", type=Bytes(), default="128K", show_default=True, help="Of disks: 64K to 1M.")
@click.option(
    "--dedupe",
    type=click.Choice(["repository", "asset", "job"]),
    default="repository",
    show_default=True,
    help="Within what chunks are shared: everything, one asset's points, what one policy backs up.",
)
@click.option("--keep", metavar="RULES", default="", help="Retention, such as 7d,4w,12m,3y. Without this all is kept.")
@click.option("--not-mounted", is_flag=True, help="Take a folder on which /etc/fstab mounts something, and nothing is.")
@click.option("--dry-run", is_flag=True, help="Only check that the place can be a repository.")
@NO_WAIT
@asks
def add(
    ask: Ask,
    name: str,
    place: str,
    endpoint: str | None,
    region: str,
    access_key: str | None,
    tls_ca: Path | None,
    passphrase_file: Path | None,
    secret_key_file: Path | None,
    secrets_stdin: bool,
    no_encryption: bool,
    no_passphrase: bool,
    block_size: int,
    dedupe: str,
    keep: str,
    not_mounted: bool,
    dry_run: bool,
    no_wait: bool,
) -> None:
    """Make a repository in an empty place: a directory of the agent's machine, or s3://bucket/prefix.

    The place is tried first: one that cannot promise what a repository needs is refused, with the reason. Secrets are read
    from files, standard input or a prompt (passphrase, then the S3 key's secret), never from arguments.
    """
    store = place_of(place, endpoint, region, access_key, tls_ca)
    given = Given(stdin=secrets_stdin)
    body: dict[str, Any] = {
        "name": name,
        "store": store,
        "encrypted": not no_encryption,
        "block_size": block_size,
        "dedupe": dedupe,
        "keep": keep,
        "unmounted": not_mounted,
        "dry_run": dry_run,
    }
    if not (no_encryption or no_passphrase or dry_run):
        body["passphrase"] = given.read("Passphrase", passphrase_file, "--passphrase-file", again=True)
    if store["kind"] == "s3":
        body["secret_key"] = given.read("Secret of the S3 key", secret_key_file, "--secret-key-file")
    job = ask.api.post("/v1/repositories", body)["job"]
    done = asked(ask, job, f"trying {place}" if dry_run else f"making {name}", no_wait=no_wait)
    if done is None:
        return
    protected = done["result"]["protected_from"]
    if dry_run:
        ask.out({"job": done, "repository": None}, lambda: _protected(f"{place} can be a repository", protected))
        return
    found = _made(ask, name)

    def human() -> None:
        _protected(f"{name} is there ({found['id']})", protected)
        if found["encrypted"]:
            click.echo("Without a key nobody can read it, also not you. Make a recovery code and put it away:")
            click.echo(f"  holdfast repository key add {name} --recovery")
        click.echo(f"Try next:  holdfast backup files PATH --to {name}")

    ask.out({"job": done, "repository": found}, human)


def _made(ask: Ask, name: str) -> dict[str, Any]:
    """What the read models say of a repository that a job has just made: they may come to the job before they come to it."""
    deadline = time.monotonic() + _VIEW_S
    while True:
        try:
            return _get(ask, name)
        except CliError as error:
            if error.code != "repository-unknown" or time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def _protected(head: str, protected: list[str]) -> None:
    click.echo(head + ".")
    for fact in protected:
        click.echo(f"  {fact}")


def _get(ask: Ask, name: str, as_of: str | None = None) -> dict[str, Any]:
    found: dict[str, Any] = ask.api.get(f"/v1/repositories/{segment(name)}", as_of=as_of)
    return found


@click.command("list")
@click.option("--as-of", type=MOMENT, help="As it was at that moment.")
@asks
def list_all(ask: Ask, as_of: str | None) -> None:
    """Repositories, by name."""
    found = ask.api.get("/v1/repositories", as_of=as_of)["items"]

    def human() -> None:
        from api.cli.tables import size, table

        if not found:
            click.echo("There is no repository:  holdfast repository add NAME PLACE")
            return
        table(
            ["NAME", "PLACE", "ENCRYPTED", ("POINTS", "right"), ("ASSETS", "right"), ("STORED", "right"), "NEWEST"],
            [
                (
                    r["name"],
                    r["place"],
                    "yes" if r["encrypted"] else "no",
                    f"{r['points']:,}",
                    f"{r['assets']:,}",
                    size(r["stored"]),
                    ago(r["newest"]) if r["newest"] else "–",
                )
                for r in found
            ],
        )
        for r in found:
            if r["problems"]:
                click.echo(f"{r['name']}:", err=True)
                say_problems(r["problems"])

    ask.out({"repositories": found}, human)


@click.command("show")
@REPOSITORY
@click.option("--as-of", type=MOMENT, help="As it was at that moment.")
@asks
def show(ask: Ask, repository: str, as_of: str | None) -> None:
    """One repository: where it is, what it holds, what is open, what it is protected from."""
    found = _get(ask, repository, as_of)

    def human() -> None:
        from api.cli.tables import pairs, size

        collection = found["collection"]
        pairs(
            [
                ("name", found["name"]),
                ("id", found["id"]),
                ("place", found["place"]),
                ("agent", found["by"]),
                ("defined", f"{local(found['defined'])} ({ago(found['defined'])})"),
                ("encrypted", "yes" if found["encrypted"] else "no"),
                ("options", ", ".join(f"{k} {v}" for k, v in found["options"].items() if k not in ("keep", "tls_ca"))),
                ("authorities", "\n".join(_authorities(found["options"].get("tls_ca", "")))),
                ("protected from", "\n".join(found["protected_from"])),
                ("retention", found["keep"] or "everything is kept"),
                ("points", f"{found['points']:,} of {found['assets']:,} assets" if found["points"] else "none"),
                ("stored", size(found["stored"])),
                ("newest", f"{local(found['newest'])} ({ago(found['newest'])})" if found["newest"] else ""),
                (
                    "open",
                    "\n".join(
                        f"{s['kind']} {s['asset']} ({s['session']}), opened {ago(s['opened'])} by {s['by']}"
                        for s in found["sessions"]
                    ),
                ),
                (
                    "collection",
                    f"{collection['state']} {ago(collection['at'])}, freed {size(collection['freed'])}"
                    if collection
                    else "",
                ),
            ]
        )
        for check in found["checks"]:
            figures = ", ".join(f"{value:,} {name}" for name, value in check["figures"].items())
            click.echo(f"{check['what']} {check['mode']} {ago(check['at'])}: {figures or 'nothing found'}")
        if found["problems"]:
            say_problems(found["problems"])

    ask.out(found, human)


def _authorities(pem: str) -> list[str]:
    """Whom an S3 store's certificate must come from, if it was said."""
    import ssl

    if not pem:
        return []
    found: list[Any] = ssl.create_default_context(cadata=pem).get_ca_certs()
    said = ((", ".join(value for part in c["subject"] for _, value in part), c["notAfter"]) for c in found)
    return [f"{name}, until {until}" for name, until in said] or ["of its own"]


@click.command("verify")
@REPOSITORY
@click.option(
    "--level",
    type=click.Choice(["metadata", "sample", "full"]),
    default="sample",
    show_default=True,
    help="Only what describes points; also a sample of their chunks; every byte.",
)
@click.option("--percent", type=click.FloatRange(0.01, 100), default=5.0, show_default=True, help="Of a sample.")
@NO_WAIT
@asks
def verify(ask: Ask, repository: str, level: str, percent: float, no_wait: bool) -> None:
    """Read a repository and compare what is there with what must be. Exit code 4 when points do not restore whole.

    What describes points stands twice, and is put right from its second copy. What no copy of can be read is lost: the points
    that need it are marked, and the next backup that still finds it on its source heals them.
    """
    job = ask.api.post(f"/v1/repositories/{segment(repository)}/verify", {"level": level, "percent": percent})["job"]
    done = asked(ask, job, f"verifying {repository}", no_wait=no_wait)
    if done is None:
        return
    result = done["result"]

    def human() -> None:
        from api.cli.tables import clean, pairs

        pairs((name.replace("_", " "), f"{value:,}") for name, value in sorted(result["figures"].items()))
        for point in result["points"]:
            click.echo(clean(f"{point['point']} does not restore whole: {point['why']}"), err=True)
        if torn := result["figures"].get("torn_packs", 0):
            click.echo(f"{torn:,} packs were never finished: their writer died, and no point needs them.")
            click.echo(f"They go with the next collection:  holdfast repository collect {repository}")
        if not result["points"]:
            click.echo("Every point that was looked at restores.")

    ask.out({"job": done, "result": result}, human)
    if result["points"]:
        sys.exit(UNWELL)


@click.command("collect")
@REPOSITORY
@click.option("--dry-run", is_flag=True, help="Only say what would be freed.")
@NO_WAIT
@asks
def collect(ask: Ask, repository: str, dry_run: bool, no_wait: bool) -> None:
    """Free what no point needs any more.

    In two phases: what nothing reaches is proposed, and removed once every session that was open then has ended.
    """
    job = ask.api.post(f"/v1/repositories/{segment(repository)}/collect", {"dry_run": dry_run})["job"]
    done = asked(ask, job, f"collecting {repository}", no_wait=no_wait)
    if done is None:
        return
    result = done["result"]

    def human() -> None:
        from api.cli.tables import size

        what = "could be freed" if dry_run else "freed"
        click.echo(f"{size(result['freed'])} {what} ({result['packs']:,} packs).")
        if result["copied"]:
            click.echo(f"{size(result['copied'])} that are still needed were moved together.")
        if result["waiting"]:
            click.echo(f"It waits for: {', '.join(result['waiting'])}. Ask again when they have ended.")

    ask.out({"job": done, "result": result}, human)


@click.command("usage")
@REPOSITORY
@asks
def usage(ask: Ask, repository: str) -> None:
    """What takes how much room, as the agent finds it in the repository's own files."""
    job = ask.api.post(f"/v1/repositories/{segment(repository)}/usage")["job"]
    done = ask.wait(job, f"measuring {repository}")
    result = done["result"]

    def human() -> None:
        from api.cli.tables import pairs, size

        pairs(
            [
                ("points", f"{result['points']:,} with {size(result['logical'])} if each were a full"),
                ("packs", f"{size(result['packs'])} in {result['pack_files']:,} files"),
                ("index", size(result["index"])),
                ("records", size(result["records"])),
                ("others", size(result["others"]) if result["others"] else ""),
                ("total", size(result["total"])),
                ("free", size(result["free"]) if result["free"] is not None else "not known"),
            ]
        )

    ask.out(result, human)


@click.command("adopt")
@click.argument("name")
@store_options
@click.option("--recovery-code", is_flag=True, help="Open it with a recovery code, read in the passphrase's place.")
@NO_WAIT
@asks
def adopt(
    ask: Ask,
    name: str,
    place: str,
    endpoint: str | None,
    region: str,
    access_key: str | None,
    tls_ca: Path | None,
    passphrase_file: Path | None,
    secret_key_file: Path | None,
    secrets_stdin: bool,
    recovery_code: bool,
    no_wait: bool,
) -> None:
    """Take over a repository that is there already: after a reinstallation, or on another site.

    Everything comes from the repository's own files: points, stars and holds. Its passphrase (or a recovery code) opens it;
    for one that is not encrypted give an empty passphrase file.
    """
    store = place_of(place, endpoint, region, access_key, tls_ca)
    given = Given(stdin=secrets_stdin)
    body: dict[str, Any] = {"name": name, "store": store}
    if not (passphrase_file is not None and not passphrase_file.stat().st_size):
        what, field = ("Recovery code", "recovery_code") if recovery_code else ("Passphrase", "passphrase")
        body[field] = given.read(what, passphrase_file, "--passphrase-file")
    if store["kind"] == "s3":
        body["secret_key"] = given.read("Secret of the S3 key", secret_key_file, "--secret-key-file")
    job = ask.api.post("/v1/repositories/adopt", body)["job"]
    done = asked(ask, job, f"adopting {name}", no_wait=no_wait)
    if done is None:
        return
    result = done["result"]

    def human() -> None:
        click.echo(f"{name} is adopted: {result['points']:,} points of {result['assets']:,} assets are back.")
        click.echo(f"Try next:  holdfast point list --repository {name}")

    ask.out({"job": done, "repository": _get(ask, name)}, human)


@click.command("move")
@REPOSITORY
@click.option("--to", "node", required=True, metavar="NODE", help="The node that is to keep it.")
@NO_WAIT
@asks
def move(ask: Ask, repository: str, node: str, no_wait: bool) -> None:
    """Give a repository to another node that reaches its place: when the one that has it died, or is to be spared.

    What that one does there ends, and should it come back, nothing that it writes counts. Its jobs that wait, and those that it
    had begun, are the other's then, but for backups and restores of paths, which are paths of its own machine.
    """
    job = ask.api.post(f"/v1/repositories/{segment(repository)}/move", {"node": node})["job"]
    done = asked(ask, job, f"moving {repository} to {node}", no_wait=no_wait)
    if done is None:
        return

    def human() -> None:
        fenced = done["result"]["fenced"]
        click.echo(
            f"{repository} is node {node}'s." + (f" {fenced} sessions of the other were ended." if fenced else "")
        )

    ask.out({"job": done, "repository": _get(ask, repository)}, human)


@click.command("retention")
@REPOSITORY
@click.argument("rules")
@NO_WAIT
@asks
def retention(ask: Ask, repository: str, rules: str, no_wait: bool) -> None:
    """Say how long points are kept: RULES such as 7d,4w,12m,3y, or "all".

    `holdfast point expire REPOSITORY --dry-run` shows what a rule means before anything goes.
    """
    body = {"keep": "" if rules == "all" else rules}
    job = ask.api.post(f"/v1/repositories/{segment(repository)}/retention", body)["job"]
    done = asked(ask, job, f"retention of {repository}", no_wait=no_wait)
    if done is not None:
        ask.out({"job": done}, lambda: click.echo(f"{repository} keeps {rules or 'all'}"))


@click.command("set")
@REPOSITORY
@click.option("--place", metavar="PATH", help="Where the same files are now, on the agent's machine.")
@click.option("--endpoint", metavar="URL", help="Of an S3 store.")
@click.option("--region", help="Of an S3 store.")
@click.option("--access-key", metavar="ID", help="Of an S3 store; its secret is read as said below.")
@click.option("--tls-ca", type=FILE, help=_AUTHORITY)
@click.option("--system-authorities", is_flag=True, help="Of an S3 store: trust what the agent's system trusts again.")
@click.option(
    "--secret-key-file", type=FILE, help="Where the secret of the new access key is. Without this it is asked for."
)
@click.option(
    "--dedupe", type=click.Choice(["repository", "asset", "job"]), help="What shares stored chunks from now on."
)
@stdin_option
@NO_WAIT
@asks
def change(
    ask: Ask,
    repository: str,
    place: str | None,
    endpoint: str | None,
    region: str | None,
    access_key: str | None,
    tls_ca: Path | None,
    system_authorities: bool,
    secret_key_file: Path | None,
    dedupe: str | None,
    secrets_stdin: bool,
    no_wait: bool,
) -> None:
    """Say that a repository is reached in another way: another mount point, another server or key.

    What is there must be this very repository. What cannot be changed: block size, encryption. Retention: `repository retention`.
    """
    if place is not None and not place.startswith("/"):
        raise click.BadParameter(f"{place!r} must be an absolute path", param_hint="--place")
    named = {"path": place, "endpoint": endpoint, "region": region, "access_key": access_key}
    if tls_ca and system_authorities:
        raise click.UsageError("--tls-ca and --system-authorities: say one of them")
    store = {name: value for name, value in named.items() if value}
    if tls_ca or system_authorities:
        store["tls_ca"] = certificates_of(tls_ca)
    body: dict[str, Any] = {**({"store": store} if store else {}), **({"dedupe": dedupe} if dedupe else {})}
    if access_key or secret_key_file:
        given = Given(stdin=secrets_stdin)
        body["secret_key"] = given.read("Secret of the S3 key", secret_key_file, "--secret-key-file")
    if not body:
        raise click.UsageError("nothing is to be changed: say what")
    job = ask.api.patch(f"/v1/repositories/{segment(repository)}", body)["job"]
    done = asked(ask, job, f"changing {repository}", no_wait=no_wait)
    if done is not None:
        ask.out({"job": done, "repository": _get(ask, repository)}, lambda: click.echo(f"{repository} is changed"))


@click.command("remove")
@REPOSITORY
@click.option("--yes", is_flag=True, help="Do not ask.")
@NO_WAIT
@asks
def remove(ask: Ask, repository: str, yes: bool, no_wait: bool) -> None:
    """Use a repository no longer. Its files stay as they are, and `repository adopt` undoes it.

    Refused while anybody works in it. What is in it can be restored again once it was adopted, here or on another site.
    """
    confirm(ask, repository, f"{repository} will not be used by this site any more; its files stay", yes)
    job = ask.api.delete(f"/v1/repositories/{segment(repository)}")["job"]
    done = asked(ask, job, f"removing {repository}", no_wait=no_wait)
    if done is None:
        return
    location = done["result"]["location"]

    def human() -> None:
        click.echo(f"{repository} is not used any more. Its files are in {location}.")
        click.echo(f"Undo:  holdfast repository adopt {repository} {location}")

    ask.out({"job": done}, human)


@click.group("key")
def key() -> None:
    """What opens a repository: this site, passphrases, recovery codes."""


@key.command("list")
@REPOSITORY
@asks
def key_list(ask: Ask, repository: str) -> None:
    """The keys of a repository: never the keys themselves."""
    job = ask.api.post(f"/v1/repositories/{segment(repository)}/keys/list")["job"]
    found = ask.wait(job, f"keys of {repository}")["result"]["keys"]

    def human() -> None:
        from api.cli.tables import table

        table(["KEY", "KIND", "MADE", "LABEL"], [(k["key"], k["kind"], local(k["made"]), k["label"]) for k in found])

    ask.out({"keys": found}, human)


@key.command("add")
@REPOSITORY
@click.option("--recovery", is_flag=True, help="A recovery code to print and put away, instead of a passphrase.")
@click.option("--passphrase-file", type=FILE, help="Where the new passphrase is. Without this it is asked for.")
@stdin_option
@asks
def key_add(ask: Ask, repository: str, recovery: bool, passphrase_file: Path | None, secrets_stdin: bool) -> None:
    """Another key that opens the repository. Nothing is encrypted anew.

    A recovery code is shown once and kept nowhere: print it. `holdfast repository key drill` proves that it works.
    """
    body: dict[str, Any] = {"kind": "recovery" if recovery else "passphrase"}
    if not recovery:
        given = Given(stdin=secrets_stdin)
        body["passphrase"] = given.read("New passphrase", passphrase_file, "--passphrase-file", again=True)
    done = ask.wait(ask.api.post(f"/v1/repositories/{segment(repository)}/keys", body)["job"], "adding a key")
    result = done["result"]
    code = ""
    if recovery:
        path = f"/v1/repositories/{segment(repository)}/keys/{segment(result['key'])}/reveal"
        code = ask.api.post(path)["code"]

    def human() -> None:
        if not code:
            click.echo(f"{result['key']} opens {repository} now.")
            return
        click.echo(f"The recovery code of {repository} (key {result['key']}). It is shown this once:\n")
        click.echo(f"  {code}\n")
        click.echo(f"Write it down, then prove it:  holdfast repository key drill {repository}")

    ask.out({"job": done, "key": result["key"], **({"code": code} if code else {})}, human)


@key.command("drill")
@REPOSITORY
@click.option("--code-file", type=FILE, help="Where the recovery code is. Without this it is asked for.")
@stdin_option
@asks
def key_drill(ask: Ask, repository: str, code_file: Path | None, secrets_stdin: bool) -> None:
    """Open the repository with a recovery code and nothing else, restore a sample, and note that it was done."""
    code = Given(stdin=secrets_stdin).read("Recovery code", code_file, "--code-file")
    job = ask.api.post(f"/v1/repositories/{segment(repository)}/keys/drill", {"recovery_code": code})["job"]
    done = ask.wait(job, f"drill of {repository}")
    result = done["result"]
    text = f"The code opens {repository}: {result['chunks']:,} chunks of {result['points']:,} points were restored with it."
    ask.out({"job": done, "result": result}, lambda: click.echo(text))


@key.command("remove")
@REPOSITORY
@click.argument("key_id", metavar="KEY")
@click.option("--yes", is_flag=True, help="Do not ask.")
@asks
def key_remove(ask: Ask, repository: str, key_id: str, yes: bool) -> None:
    """Have a key open the repository no longer. The last one cannot be removed."""
    confirm(ask, repository, f"{key_id} will not open {repository} any more", yes)
    job = ask.api.delete(f"/v1/repositories/{segment(repository)}/keys/{segment(key_id)}")["job"]
    done = ask.wait(job, f"removing {key_id}")
    ask.out({"job": done}, lambda: click.echo(f"{key_id} does not open {repository} any more"))


COMMANDS = (add, list_all, show, verify, collect, usage, adopt, move, retention, change, remove, key)
