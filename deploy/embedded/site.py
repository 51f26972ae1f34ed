"""The data directory of a site: what makes it ours, who holds it, its settings file and its secrets.

    holdfast.toml        settings (streams.settings); written once, then the user's
    HOLDFAST-SITE        marker: this directory is ours, in this layout
    kafka/  postgres/    the servers' data
    secrets/             site.key (32 random bytes), postgres.password, and the secret store
    logs/                what the processes say
    run/                 lock, supervisor's state; of no worth when nothing runs

If we die here: the marker is written first, so that a directory begun is recognised as ours; each file is written
beside its name and renamed into place; the lock is the kernel's (flock) and goes with its holder, so none is stale.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import IO

from deploy.embedded.user import ServiceUser
from deploy.errors import SiteError
from streams.settings import Settings, load

MARKER = "HOLDFAST-SITE"
LAYOUT = "1"
SETTINGS = "holdfast.toml"
KEY_BYTES = 32
MINIMUM_FREE = 1 << 30  # bytes; Kafka alone takes several hundred MB when it recovers
LOW_FREE = 5 << 30


def default_data_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """`$HOLDFAST_DATA`; else `/var/lib/holdfast` for root, `$XDG_DATA_HOME/holdfast` or `~/.local/share/holdfast`."""
    if given := environ.get("HOLDFAST_DATA"):
        return Path(given).absolute()
    if os.geteuid() == 0:
        return Path("/var/lib/holdfast")
    return Path(environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "holdfast"


def exists(directory: Path) -> bool:
    """Whether `directory` holds a site. Raises `SiteError` (`directory-not-ours`, `directory-layout`)."""
    marker = directory / MARKER
    if marker.exists():
        layout = marker.read_text(encoding="utf-8").strip()
        if layout != LAYOUT:
            raise SiteError(
                "directory-layout",
                f"{directory} is in layout {layout!r}; this version knows layout {LAYOUT}",
                "use the version of Holdfast that wrote it, or another --data-dir",
            )
        return True
    if not directory.exists():
        return False
    if not directory.is_dir():
        raise SiteError("directory-not-ours", f"{directory} is a file", "choose another --data-dir")
    if any(directory.iterdir()):
        raise SiteError(
            "directory-not-ours",
            f"{directory} is neither empty nor a data directory of Holdfast's (it has no {MARKER})",
            "choose another --data-dir",
        )
    return False


def create(directory: Path, user: ServiceUser) -> None:
    """Make `directory` a site's: marker, subdirectories, site key. Does only what is still to be done."""
    exists(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o755)
        write_file(directory / MARKER, LAYOUT + "\n", 0o644)
        # Servers must get through to their own; what is private has a mode of its own.
        directory.chmod(0o711)
        for name in ("logs", "run", "secrets"):
            (directory / name).mkdir(exist_ok=True, mode=0o700)
            user.own(directory / name)
    except OSError as e:
        raise SiteError("directory-unwritable", f"cannot set up {directory}: {e.strerror}", "see --data-dir") from e
    key = directory / "secrets" / "site.key"
    if not key.exists():
        write_file(key, secrets.token_bytes(KEY_BYTES), 0o600)
        user.own(key)


def require_space(directory: Path, minimum: int = MINIMUM_FREE) -> int:
    """Free bytes on the file system of `directory`. Raises `SiteError` (`disk-full`) below `minimum`."""
    existing = next(p for p in [directory, *directory.parents] if p.exists())
    free = shutil.disk_usage(existing).free
    if free < minimum:
        raise SiteError(
            "disk-full",
            f"{free >> 20} MiB are free where {directory} is; {minimum >> 20} MiB are the least to start with",
            "make room, or use another --data-dir; nothing has been started or changed",
        )
    return free


def hold(directory: Path) -> IO[str] | None:
    """The site's lock, held until the returned file is closed or its process ends; None when another process has it.

    The file says who: `holder`.
    """
    f = (directory / "run" / "lock").open("a+", encoding="ascii")
    try:
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        f.close()
        return None
    f.seek(0)
    f.truncate()
    f.write(f"{os.getpid()}\n")
    f.flush()
    os.set_inheritable(f.fileno(), False)
    return f


def holder(directory: Path) -> int | None:
    """The pid of the process that holds the site now; None when nobody does, whatever the file says."""
    try:
        f = (directory / "run" / "lock").open("r+", encoding="ascii")
    except FileNotFoundError:
        return None
    with f:
        try:
            fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = f.read().strip()
            return int(text) if text.isdigit() else 0
        return None


def read_settings(directory: Path) -> Settings:
    return load(directory / SETTINGS)


def write_settings(settings: Settings, comment: str = "") -> Path:
    """`settings` as `holdfast.toml` in its data directory, paths relative; `load` of it gives `settings` again."""
    path = settings.data_dir / SETTINGS
    write_file(path, "".join(f"# {line}\n" for line in comment.splitlines()) + to_toml(settings), 0o644)
    return path


def to_toml(settings: Settings) -> str:
    lines = [_line("site", settings.site)]
    if settings.secret_key_file != settings.data_dir / "secrets" / "site.key":
        lines.append(_line("secret_key_file", _relative(settings.secret_key_file, settings.data_dir)))
    for name in ("kafka", "postgres", "api", "capture"):
        section = getattr(settings, name)
        defaults = {f.name: f.default for f in fields(section)}
        if name == "capture" and all(getattr(section, key) == value for key, value in defaults.items()):
            continue
        lines += ["", f"[{name}]"]
        for key, value in asdict(section).items():
            if value is not None and value != defaults[key]:
                lines.append(_line(key, _relative(value, settings.data_dir) if isinstance(value, Path) else value))
        if name == "api":
            lines += [_line(k, v) for k, v in asdict(section).items() if v is not None and v == defaults[k]]
    return "\n".join(lines) + "\n"


def write_file(path: Path, data: str | bytes, mode: int) -> None:
    """Whole or not at all, also across a power cut."""
    new = path.with_name(path.name + ".new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as f:
        f.write(data.encode() if isinstance(data, str) else data)
        f.flush()
        os.fsync(f.fileno())
    new.rename(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _relative(path: Path, base: Path) -> str:
    return str(path.relative_to(base)) if path.is_relative_to(base) else str(path)


def _line(key: str, value: object) -> str:
    if isinstance(value, bool):
        return f"{key} = {str(value).lower()}"
    if isinstance(value, int):
        return f"{key} = {value}"
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'{key} = "{text}"'
