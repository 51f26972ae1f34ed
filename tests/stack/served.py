"""Inside the machine of `tests.stack.file_servers`: a file server and its clients, all in one kernel, each client in a network of
its own, so that the server takes them for machines, and they share no cache.

    10.9.1.1 ─ a (10.9.1.2)      the server's folders: main, small (full at once), fixed (the same as main, read-only)
    10.9.2.1 ─ b (10.9.2.2)      kinds: nfs4.2, nfs3 (the kernel's nfsd), smb3.1.1 (Samba)
    10.9.3.1 ─ p (10.9.3.2)      p is there for a proxy that loses answers (`Loses`)

Runs as root, on the only machine where it may: nothing here is put back.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import psutil

from deploy.embedded.process import wait_until

KINDS: Final = ("nfs4.2", "nfs3", "smb3.1.1")
CLIENTS: Final = {"a": 1, "b": 2, "p": 3}
SHARES: Final = ("main", "small", "fixed")
MOUNTED: Final = Path("/net")
SERVED: Final = Path("/srv")
_NFS: Final = 2049
_MOUNTD: Final = 20048
_SMB: Final = 445
_WORD: Final = "inside-only"
_STATE: Final = Path("/run/samba")
_CONF: Final = _STATE / "smb.conf"
_EXPORT: Final = "sync,no_subtree_check,no_root_squash,insecure"


def run(*command: str, given: str = "") -> str:
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.returncode} {done.stderr.strip()} {done.stdout.strip()}")
    return done.stdout


class _Keeper:
    """A shell that was started while this process had no file of a mount open. Its children have none to close either: to close
    one waits for its server, for ever in the one who is to start it."""

    def __init__(self) -> None:
        self._shell = subprocess.Popen(["sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._lock = threading.Lock()

    def run(self, command: str) -> None:
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        with self._lock:
            self._shell.stdin.write(f"{command} 2>&1 < /dev/null; echo; echo over $?\n")
            self._shell.stdin.flush()
            said: list[str] = []
            while not said or not said[-1].startswith("over "):
                said.append(self._shell.stdout.readline())
            if said[-1] != "over 0\n":
                raise RuntimeError(f"{command}: {''.join(said)}")


@functools.cache
def keeper() -> _Keeper:
    """To be called before anything on a mount is opened."""
    return _Keeper()


def begin() -> None:
    """Networks, folders, servers."""
    ours = ""
    for name, number in CLIENTS.items():
        ours += (
            f"netns add {name}\nlink add to-{name} type veth peer name eth0 netns {name}\n"
            f"addr add 10.9.{number}.1/24 dev to-{name}\nlink set to-{name} up\n"
        )
    run("ip", "-batch", "-", given=ours)
    for name, number in CLIENTS.items():
        theirs = f"addr add 10.9.{number}.2/24 dev eth0\nlink set eth0 up\nlink set lo up\n"
        run("ip", "-n", name, "-batch", "-", given=theirs)
    run("mount", "-t", "tmpfs", "srv", str(SERVED))  # the root of this machine cannot be exported
    for share, disk in (("main", "ubda"), ("small", "ubdb")):
        (SERVED / share).mkdir(parents=True)
        run("mount", "-t", "ext4", f"/dev/{disk}", str(SERVED / share))
        (SERVED / share).chmod(0o777)
    (SERVED / "fixed").mkdir()
    run("mount", "--bind", str(SERVED / "main"), str(SERVED / "fixed"))
    _begin_nfs()
    _begin_smb()


def _begin_nfs() -> None:
    Path("/etc/exports").write_text(
        f"/srv *(ro,{_EXPORT},fsid=0)\n"  # the root that clients of NFS 4 see
        f"/srv/main *(rw,{_EXPORT},fsid=1)\n/srv/small *(rw,{_EXPORT},fsid=2)\n/srv/fixed *(ro,{_EXPORT},fsid=3)\n"
    )
    for folder in (
        "/var/lib/nfs/nfsdcld",
        "/run/rpc_pipefs",
        "/run/rpcbind",
        "/var/lib/nfs/sm",
        "/var/lib/nfs/v4recovery",
    ):
        Path(folder).mkdir(parents=True, exist_ok=True)
    with Path("/etc/passwd").open("a") as users:
        users.write("_rpc:x:65533:65534::/run/rpcbind:/usr/sbin/nologin\n")  # whom rpcbind becomes
    for name in ("etab", "rmtab", "state", "xtab"):
        Path("/var/lib/nfs", name).touch()
    run("mount", "-t", "nfsd", "nfsd", "/proc/fs/nfsd")
    run("mount", "-t", "rpc_pipefs", "rpc_pipefs", "/run/rpc_pipefs")
    run("rpcbind", "-w")
    run("nfsdcld", "-p", "/run/rpc_pipefs")
    run("exportfs", "-ra")
    run("rpc.mountd", "--port", str(_MOUNTD))
    start_nfs(grace=False)


def start_nfs(*, grace: bool) -> None:
    """With `grace`, as after any start: for a while, at most 10 s, only what clients had open before may be opened."""
    keeper().run("rpc.nfsd -G 10 -L 10 4")
    if not grace:
        with contextlib.suppress(OSError):  # there is none, when nobody had anything open
            Path("/proc/fs/nfsd/v4_end_grace").write_text("Y\n")


def stop_nfs() -> None:
    keeper().run("rpc.nfsd 0")


def _begin_smb() -> None:
    _STATE.mkdir()
    kinds = ("private dir", "lock directory", "state directory", "cache directory", "pid directory", "ncalrpc dir")
    folders = "".join(f"{kind} = {_STATE}\n" for kind in kinds)
    shares = "".join(f"[{s}]\npath = /srv/{s}\nread only = {'yes' if s == 'fixed' else 'no'}\n" for s in SHARES)
    _CONF.write_text(
        f"[global]\nserver role = standalone server\npassdb backend = smbpasswd:{_STATE}/passwords\n{folders}"
        f"log file = {_STATE}/log\nsmb ports = {_SMB}\ndisable netbios = yes\nload printers = no\nprinting = bsd\n"
        f"server min protocol = SMB3\nadmin users = root\n{shares}"
    )
    run("smbpasswd", "-c", str(_CONF), "-s", "-a", "root", given=f"{_WORD}\n{_WORD}\n")
    start_smb()


def start_smb() -> None:
    keeper().run(f"smbd -D -s {_CONF} > /dev/null")
    if not wait_until(lambda: _answers(_SMB), 30):
        raise RuntimeError((_STATE / "log").read_text()[-3000:])


def stop_smb() -> None:
    """As a power cut ends it: connections, and files that clients have open, are gone."""
    smbd = psutil.Process(int((_STATE / "smbd.pid").read_text()))
    for one in (smbd, *smbd.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    wait_until(lambda: not _answers(_SMB), 30)


def start(kind: str, *, grace: bool = True) -> None:
    start_smb() if kind.startswith("smb") else start_nfs(grace=grace)


def stop(kind: str) -> None:
    stop_smb() if kind.startswith("smb") else stop_nfs()


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def port_of(kind: str) -> int:
    return _SMB if kind.startswith("smb") else _NFS


def mount(kind: str, client: str, share: str = "main", *, port: int = 0, options: str = "", name: str = "") -> Path:
    """A client's mount of a share, as docs/guides/repository.md asks for it unless `options` are given. Returns where it is."""
    at = MOUNTED / (name or f"{client}-{share}-{kind}")
    at.mkdir(parents=True, exist_ok=True)
    server, port = f"10.9.{CLIENTS[client]}.1", port or port_of(kind)
    more = f",{options}" if options else ""
    if kind.startswith("smb"):
        source = f"//{server}/{share}"
        words = f"ip={server},unc={source},port={port},vers={kind[3:]},username=root,password={_WORD}{more or ',hard,nolease'}"
        command: tuple[str, ...] = ("mount", "-i", "-t", "cifs", "-o", words, source, str(at))
    else:
        v3 = f",nolock,mountport={_MOUNTD},mountproto=tcp" if kind == "nfs3" else ""
        words = f"vers={kind[3:]},proto=tcp,port={port}{v3}{more}"
        command = ("mount.nfs", f"{server}:{'/srv' if kind == 'nfs3' else ''}/{share}", str(at), "-o", words)
    run("nsenter", f"--net=/run/netns/{client}", *command)
    return at


def unmount(at: Path) -> None:
    run("umount", str(at))


class Loses:
    """A proxy before a server: the answer to the first message that is wanted is lost, and with it the connection. What was asked
    for has been done by then; `meanwhile` is called, and the client connects and asks again. Messages of both protocols are
    framed alike: four bytes, of which the last three say how long it is.
    """

    def __init__(self, port: int, meanwhile: Callable[[], None] = lambda: None) -> None:
        self._to, self._meanwhile = port, meanwhile
        self._wants: Callable[[bytes], bytes] | None = None
        self.lost = 0
        self._lock = threading.Lock()
        self._socket = socket.create_server(("0.0.0.0", 0))
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self, wants: Callable[[bytes], bytes]) -> None:
        """`wants(message)`: what tells its answer (RPC: bytes 0 to 4, SMB: 24 to 32), or nothing."""
        with self._lock:
            self._wants = wants

    def close(self) -> None:
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                client.close()
                continue
            awaited: list[bytes] = []
            for source, target, back in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._pump, args=(source, target, awaited, back), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, awaited: list[bytes], back: bool) -> None:
        try:
            while head := _exactly(source, 4):
                message = _exactly(source, int.from_bytes(head, "big") & 0xFFFFFF)
                if back and any(mark in (message[:4], message[24:32]) for mark in awaited):
                    self.lost += 1
                    self._meanwhile()
                    break
                if not back:
                    with self._lock:
                        if self._wants is not None and (mark := self._wants(message)):
                            awaited.append(mark)
                            self._wants = None
                target.sendall(head + message)
        except OSError:
            pass
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


def _exactly(source: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = source.recv(size - len(data))
        if not piece:
            return b""
        data += piece
    return data


def asks(kind: str, what: str) -> Callable[[bytes], bytes]:
    """For `Loses.arm`: whether a message asks for `what` (`make` a file that is not there, `folder`, `link`, `remove`)."""
    if kind.startswith("smb"):
        return lambda message: _smb(message, what)
    return lambda message: _nfs(message, what)


_V3: Final = {"make": 8, "folder": 9, "remove": 12, "link": 15}  # procedures, RFC 1813
_V4: Final = {"make": 18, "folder": 6, "remove": 28, "link": 11}  # operations, RFC 7530
_BEFORE: Final = {53: 32, 32: 0, 31: 0, 24: 0}  # SEQUENCE, SAVEFH, RESTOREFH, PUTROOTFH: bytes of their arguments
_PUTFH: Final = 22


def _nfs(message: bytes, what: str) -> bytes:
    """RFC 5531 (calls), 1813 and 8881."""
    if len(message) < 40:
        return b""
    _, reply, _, called, version, procedure = struct.unpack_from(">6I", message)
    if reply or called != 100_003:
        return b""
    if version == 3:
        return message[:4] if procedure == _V3[what] else b""
    at = 24
    for _ in range(2):  # credentials, verifier
        at += 8 + _padded(struct.unpack_from(">I", message, at + 4)[0])
    if procedure != 1:
        return b""
    at += 4 + _padded(struct.unpack_from(">I", message, at)[0]) + 4  # tag, minor version
    count, at = struct.unpack_from(">I", message, at)[0], at + 4
    for _ in range(count):
        operation, at = struct.unpack_from(">I", message, at)[0], at + 4
        if operation == _V4[what]:
            return message[:4]
        if operation == _PUTFH:
            at += 4 + _padded(struct.unpack_from(">I", message, at)[0])
        elif operation in _BEFORE:
            at += _BEFORE[operation]
        else:
            break
    return b""


def _padded(size: int) -> int:
    return size + -size % 4


def _smb(message: bytes, what: str) -> bytes:
    """MS-SMB2 2.2.1, 2.2.13, 2.2.39: a chain of requests; the answer has the number of the first."""
    at = 0
    while message[at : at + 4] == b"\xfeSMB":
        command, following = (
            struct.unpack_from("<H", message, at + 12)[0],
            struct.unpack_from("<I", message, at + 20)[0],
        )
        if command == 5:
            disposition, options = struct.unpack_from("<II", message, at + 100)
            folder = options & 1
            if (what == "make" and disposition == 2 and not folder) or (
                what == "folder" and disposition == 2 and folder
            ):
                return message[24:32]
            if what == "remove" and options & 0x1000:
                return message[24:32]
        if command == 0x11 and what == "link" and message[at + 66 : at + 68] == b"\x01\x0b":
            return message[24:32]
        if not following:
            break
        at += following
    return b""


def main() -> None:
    begin()
    for kind in KINDS:
        for client, share in (("a", "main"), ("b", "main"), ("a", "small"), ("a", "fixed")):
            mount(kind, client, share)


if __name__ == "__main__":
    main()
