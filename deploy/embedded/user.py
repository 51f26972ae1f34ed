"""Whom the servers run as when Holdfast is started by root, and what that user must be able to reach.

PostgreSQL refuses root, and nothing that listens should be root. Started by anyone else, everything runs as that user.
Started by root, servers run as the user `holdfast` where the system has one, else as `nobody`, which always exists but
is shared with whatever else uses it; `holdfast doctor` says so.
"""

from __future__ import annotations

import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import SiteError

NAMES = ("holdfast", "nobody")


@dataclass(frozen=True, slots=True)
class ServiceUser:
    name: str
    uid: int
    gid: int

    def can_reach(self, path: Path) -> bool:
        """Whether this user may execute (a directory: enter) `path`, links followed, going by owner and mode."""
        if self.uid == 0:
            return True
        real = path.resolve()
        return all(self._may_execute(p) for p in [*real.parents, real])

    def _may_execute(self, path: Path) -> bool:
        try:
            s = path.stat()
        except OSError:
            return False
        if s.st_uid == self.uid:
            return bool(s.st_mode & stat.S_IXUSR)
        if s.st_gid == self.gid:
            return bool(s.st_mode & stat.S_IXGRP)
        return bool(s.st_mode & stat.S_IXOTH)

    def require_reach(self, directory: Path) -> None:
        """Raises `SiteError` (`directory-unreachable`) when this user could not enter `directory`, once it exists."""
        for parent in reversed([*directory.resolve().parents]):
            if parent.exists() and not self._may_execute(parent):
                raise SiteError(
                    "directory-unreachable",
                    f"servers run as user {self.name}, who cannot enter {parent}",
                    f"choose a directory elsewhere, or let that user through: chmod o+x {parent}",
                )

    def own(self, path: Path) -> None:
        """Make this user the owner of `path`, as far as we may (root)."""
        if os.geteuid() == 0 and path.lstat().st_uid != self.uid:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def own_tree(self, path: Path) -> None:
        if os.geteuid() == 0:
            self.own(path)
            for directory, names, files in os.walk(path):
                for name in names + files:
                    self.own(Path(directory, name))


def service_user() -> ServiceUser:
    """Whom servers run as: ourselves, or, if we are root, the first of `NAMES` that exists."""
    if os.geteuid() != 0:
        uid = os.geteuid()
        try:
            name = pwd.getpwuid(uid).pw_name
        except KeyError as e:
            raise SiteError(
                "user-unknown",
                f"user id {uid} has no entry in the system's user database, which PostgreSQL demands",
                "run as a user that `getent passwd` knows",
            ) from e
        return ServiceUser(name, uid, os.getegid())
    for name in NAMES:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            return ServiceUser(name, entry.pw_uid, entry.pw_gid)
    raise SiteError(
        "no-service-user",
        "running as root, and the system has neither a user `holdfast` nor `nobody` to run servers as",
        "useradd --system --home-dir /nonexistent --shell /usr/sbin/nologin holdfast",
    )
