"""A rebuild killed at each of its boundaries: the old view stays or the new one is in, and the next run cleans up."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from projections import generations, offsets
from projections.rebuild import rebuild
from projections.views import VIEWS
from streams.settings import Settings
from tests.contract.running import ROOT, apply_all, digests, prepared, publish
from tests.contract.sample_log import history
from tests.stack.servers import config_file

pytestmark = pytest.mark.crash

# Runs a rebuild that kills itself when it is at the phase named, the nth time.
SUICIDE = textwrap.dedent(
    """
    import os, signal, sys
    from projections.rebuild import rebuild
    from streams.settings import load
    config, view, phase, times = sys.argv[1:]
    left = int(times)
    def progress(p):
        global left
        if p.phase == phase:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    rebuild(load(config), view, progress)
    """
)


def killed(site: Settings, script: Path, view: str, phase: str, times: int = 1) -> None:
    script.write_text(SUICIDE)
    run = subprocess.run(
        [sys.executable, "-P", str(script), str(config_file(site)), view, phase, str(times)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == -signal.SIGKILL, run.stderr.decode()


@pytest.mark.parametrize(
    ("phase", "times", "new_is_in"),
    [
        ("begun", 1, False),
        ("replaying", 1, False),
        ("replaying", 2, False),
        ("compared", 1, False),
        ("catching-up", 1, False),
        ("swapping", 1, False),
        ("swapped", 1, True),
        ("cleaned", 1, True),
    ],
)
def test_killed_at(fresh_site: Settings, tmp_path: Path, phase: str, times: int, new_is_in: bool) -> None:
    view = "timeline"
    with prepared(fresh_site) as conn:
        publish(fresh_site, history(random.Random(1), 6000))
        apply_all(fresh_site, conn)
        before = digests(conn)
        killed(fresh_site, tmp_path / "suicide.py", view, phase, times)

        # The view answers, with all its rows, from one generation or the other.
        after = digests(conn)
        assert {name: d.digest for name, d in after.items()} == {name: d.digest for name, d in before.items()}
        assert (after[view].generation > before[view].generation) is new_is_in

        # It goes on from where it stands.
        publish(fresh_site, history(random.Random(2), 100))
        apply_all(fresh_site, conn)

        # The lock died with its holder; what was left is removed.
        result = rebuild(fresh_site, view)
        assert result.equal is True
        assert conn.execute("SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'view_%%'", ()).fetchone() == (
            len(VIEWS),
        )
        stands = conn.execute(
            "SELECT DISTINCT generation FROM holdfast.view_offset WHERE view = %s", (view,)
        ).fetchall()
        assert stands == [(offsets.live_generation(conn, view),)]
        assert generations.clean_all(conn) == []
