"""Golden files of index runs and of what a repository says of itself: each is read, and is what this release writes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.repository import repository
from agents.repository import runs as index_runs
from agents.repository.errors import RepositoryError
from tests.golden.repository import runs


@pytest.mark.parametrize("name", list(runs.files()))
def test_what_is_written_is_what_was_written(name: str) -> None:
    assert runs.files()[name] == (runs.HERE / name).read_bytes()


def test_what_was_written_is_read() -> None:
    assert index_runs.decode((runs.HERE / "index.run").read_bytes(), runs.REPOSITORY) == runs.run()
    for name, definition in runs.definitions().items():
        assert repository.decode((runs.HERE / f"repository-{name}").read_bytes()) == definition


@given(st.data())
def test_a_definition_that_was_changed_is_refused(data: st.DataObject) -> None:
    whole = (runs.HERE / "repository-sealed.json").read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    for broken in (changed, whole[:at], data.draw(st.binary(max_size=200))):
        with pytest.raises(RepositoryError, match="repository-damaged"):
            repository.decode(broken)
