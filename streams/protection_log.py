"""What counts of what is said about protection: a word that says another state than the word before. Pure.

So of several APIs that notice the same thing one word counts, and one that says it again after a start says nothing."""

from __future__ import annotations

from streams.events import ProtectionChanged


def counts(state: str, event: ProtectionChanged) -> bool:
    """Whether the next word about an asset says anything; `state` is that of the last one that did, empty before the first."""
    return event.state != state
