"""TCP ports on this machine: free ones, and who has a taken one."""

from __future__ import annotations

import socket

import psutil

from deploy.errors import SiteError


def free_ports(count: int) -> list[int]:
    """`count` different ports of 127.0.0.1 that nobody listens on now. Somebody may take one before you do."""
    held = []
    try:
        for _ in range(count):
            s = socket.socket()
            s.bind(("127.0.0.1", 0))
            held.append(s)
        return [s.getsockname()[1] for s in held]
    finally:
        for s in held:
            s.close()


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as s:
        # As servers do: a port whose last connections are still in TIME_WAIT is free.
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((host, port))
        except OSError:
            return False
        return True


def require_free(port: int, what: str, option: str, host: str = "127.0.0.1") -> None:
    """Raises `SiteError` (`port-taken`) that names who has it, as far as the system tells."""
    if not is_free(port, host):
        holder = _holder(port)
        raise SiteError(
            "port-taken",
            f"port {port}, which {what} is to listen on, is taken" + (f" by {holder}" if holder else ""),
            f"end that process, or give another port: holdfast up {option} N",
        )


def accepts(host: str, port: int, timeout: float = 1.0) -> bool:
    """Whether something takes a TCP connection there."""
    try:
        with socket.create_connection((host, port), timeout):
            return True
    except OSError:
        return False


def listener(port: int) -> psutil.Process | None:
    """The process that listens on `port`; None when there is none, or it cannot be seen from here."""
    try:
        for c in psutil.net_connections("tcp"):
            if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port and c.pid:
                return psutil.Process(c.pid)
    except psutil.Error:
        pass
    return None


def _holder(port: int) -> str:
    found = listener(port)
    try:
        return f"{found.name()} (pid {found.pid})" if found is not None else ""
    except psutil.Error:
        return ""
