"""libvirt's Python binding, from wherever this machine has it.

There is no wheel of it: it is built against the libvirt that is there, so distributions pack it for their own Python. An
environment of Holdfast's own does not see that. So where `import libvirt` finds nothing, its modules alone are loaded from the
system's folder, if they are built for this version of Python (docs/adr/0024); nothing else from there can be imported.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import sysconfig
import threading
from pathlib import Path
from typing import Any, Final

from agents.errors import AgentError

_LOCK: Final = threading.RLock()
_ready: dict[str, Any] = {}
_HINT: Final = (
    "install the distribution's package (Debian: python3-libvirt; Red Hat: python3-libvirt) and run Holdfast with that"
    " distribution's Python version (HOLDFAST_PYTHON=/usr/bin/python3 ./dev), or pip install libvirt-python where there is"
    " a compiler and libvirt's headers"
)


def libvirt() -> Any:
    """The module, ready: its event loop runs. Raises `AgentError` (`extra-missing`)."""
    with _LOCK:
        module = _ready.get("libvirt")
        if module is None:
            module = _ready["libvirt"] = _load()
            # What it would print to standard error comes as exceptions as well.
            module.registerErrorHandler(lambda *_: None, None)
            # Keepalive, which finds out that a remote host is gone, needs an event loop before the first connection.
            module.virEventRegisterDefaultImpl()
            threading.Thread(target=_events, args=(module,), name="libvirt-events", daemon=True).start()
        return module


def libvirt_qemu() -> Any:
    """The module of what is QEMU's alone. Raises as `libvirt`."""
    with _LOCK:
        libvirt()  # which it imports
        module = _ready.get("libvirt_qemu")
        if module is None:
            module = _ready["libvirt_qemu"] = _load("libvirt_qemu", "libvirtmod_qemu")
        return module


def _events(module: Any) -> None:
    while True:
        module.virEventRunDefaultImpl()


def _load(name: str = "libvirt", extension: str = "libvirtmod") -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in (name, extension):
            raise
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    for folder in folders():
        native, python = folder / f"{extension}{suffix}", folder / f"{name}.py"
        if native.is_file() and python.is_file():
            try:
                _module(extension, native)
                return _module(name, python)
            except ImportError as error:  # a library it needs is not there
                raise AgentError(
                    "extra-missing", f"libvirt's binding in {folder} does not load: {error}", _HINT
                ) from error
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    raise AgentError("extra-missing", f"platform kvm needs libvirt's binding for Python {version}", _HINT)


def folders() -> list[Path]:
    """Where distributions keep modules of their own Python."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    return [
        Path("/usr/lib/python3/dist-packages"),
        *(
            Path(f"/usr/{lib}/{version}/{site}")
            for lib in ("lib64", "lib")
            for site in ("site-packages", "dist-packages")
        ),
    ]


def _module(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
