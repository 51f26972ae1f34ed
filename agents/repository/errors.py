"""What goes wrong in a repository. `RepositoryError.code` is stable; `StoreError` is of `agents.repository.stores`."""

from __future__ import annotations

from typing import Final

from agents.errors import AgentError

DAMAGED: Final = "chunk-damaged"
CHUNK_MISSING: Final = "chunk-missing"
PACK_DAMAGED: Final = "pack-damaged"
LOCKED: Final = "repository-locked"
KEY_DAMAGED: Final = "repository-key-damaged"


class RepositoryError(AgentError):
    """A repository cannot do what it was asked. Codes of packs and keys: `chunk-damaged`, `chunk-missing`, `pack-damaged`,
    `pack-unfit`, `repository-locked` (what was given does not unlock it), `repository-key-damaged`, `recovery-code-invalid`."""
