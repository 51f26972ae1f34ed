"""Policies as a user has them: a schedule that runs, what it came to, how well things are protected, settings in a file."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stack.running_api import eventually
from tests.stack.running_site import RunningSite
from tests.stack.servers import KafkaServer, PostgresServer, Scratch, make_site

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def site(kafka: KafkaServer, postgres: PostgresServer) -> Iterator[RunningSite]:
    scratch = Scratch("policies")
    database = postgres.fresh_database()
    running = RunningSite(make_site(scratch.path / "site", kafka.settings(f"t{secrets.token_hex(4)}."), database))
    try:
        yield running
    finally:
        running.close()
        postgres.drop_database(database.dbname)
        scratch.remove()


def known(site: RunningSite, policy: str, version: int) -> None:
    """Until the read models have it: on a busy machine that may take longer than the API waits."""
    eventually(lambda: f"version {version}\n" in site.run("policy", "show", policy).stdout)


def test_a_schedule_runs_and_settings_are_a_file(site: RunningSite, tmp_path: Path) -> None:
    (tmp_path / "vault").mkdir()
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_text("worth keeping")
    # The API is up before the processors have made the read models.
    eventually(lambda: site.run("policy", "list").returncode == 0)
    assert "There is no policy" in site.cli("policy", "list")
    site.json("repository", "add", "vault", str(tmp_path / "vault"), "--no-encryption", "--keep", "7d", "--no-wait")
    eventually(lambda: site.run("repository", "show", "vault").returncode == 0)

    home = ("--kind", "files", "--path", f"home={tmp_path / 'tree'}", "--to", "vault")
    tried = site.cli("policy", "add", "homes", *home, "-s", "daily 02:30", "--zone", "Europe/Berlin", "--dry-run")
    assert "Of now: home." in tried
    assert "rule-invalid" in site.cli("policy", "add", "homes", *home, "-s", "daily", expect=11)
    # Due at once, and then not for a long time.
    made = site.json("policy", "add", "homes", *home, "-s", "rolling 90d", "--note", "the first one")
    assert (made["version"], made["document"]["schedule"]) == (1, ["rolling 90d"])
    known(site, "homes", 1)
    eventually(lambda: any(r["run"] and r["run"]["ended"] for r in site.json("policy", "status", "homes")["runs"]))
    eventually(lambda: len(site.json("point", "list")["points"]) == 1)
    status = site.json("policy", "status", "homes")
    assert [(r["state"], r["run"]["figures"]["done"]) for r in status["runs"]] == [("fired", 1)]
    assert [(a["asset"], a["state"]) for a in status["assets"]] == [("home", "unverified")]

    # Looked after: verified whole, then it is covered.
    site.json(
        "policy", "add", "proof", "--kind", "verify", "--level", "full", "--to", "vault", "-s", "monthly last 04:00"
    )
    known(site, "proof", 1)
    ran = site.json("policy", "run", "proof")
    assert (ran["state"], ran["made"]["reason"], ran["tasks"][0]["jobs"][0]["state"]) == ("ended", "asked", "finished")
    eventually(lambda: [a["state"] for a in site.json("asset", "status")["assets"]] == ["covered"])
    assert "covered" in site.cli("asset", "status")
    site.cli("policy", "status", "homes", "--fail-on", "sampled")

    changed = site.json(
        "policy", "set", "homes", "-s", "daily 02:30", "--zone", "Europe/Berlin", "--window", "02:00-04:00"
    )
    assert changed["version"] == 2
    known(site, "homes", 2)
    coming = site.json("policy", "next", "homes", "-n", "12")["runs"]
    assert len(coming) == 12
    assert all(r["start"][11:16] in ("00:30", "01:30", "01:00") for r in coming)
    assert "02:30" in site.cli("policy", "next", "homes", TZ="Europe/Berlin")
    assert "daily 02:30" in site.cli("policy", "show", "homes")

    # The settings as a file: changed, looked at, put in; refused when the site has changed since.
    file = tmp_path / "settings.json"
    site.cli("policy", "export", "--to", str(file))
    assert "Nothing differs." in site.cli("policy", "import", str(file), "--dry-run")
    settings = json.loads(file.read_text())
    settings["policies"]["homes"]["priority"] = 5
    settings["repositories"]["vault"]["keep"] = "14d"
    file.write_text(json.dumps(settings))
    assert "review-missing" in site.cli("policy", "import", str(file), expect=1)
    review = site.json("policy", "import", str(file), "--dry-run")["review"]
    site.cli("policy", "set", "proof", "--off")
    known(site, "proof", 2)
    assert "review-outdated" in site.cli("policy", "import", str(file), "--review", review, expect=11)
    shown = site.cli("policy", "import", str(file), "--dry-run")
    assert "+ priority: 5" in shown
    assert "policy proof changed" in shown
    review = shown.split("--review ")[1].split()[0]
    site.cli("policy", "import", str(file), "--review", review)
    known(site, "homes", 3)
    assert site.json("policy", "show", "homes")["document"]["priority"] == 5
    eventually(lambda: site.json("repository", "show", "vault")["keep"] == "14d")

    # A saved job: a policy without a schedule, run when it is asked to.
    tree = ("--kind", "files", "--path", f"tree={tmp_path / 'tree'}", "--to", "vault")
    assert "Of now: tree." in site.cli("job", "create", "by-hand", *tree, "--dry-run")
    assert site.json("job", "create", "by-hand", *tree)["document"]["schedule"] == []
    known(site, "by-hand", 1)
    assert "job create" in site.cli("policy", "add", "unscheduled", *tree, expect=2)
    assert "Of now: tree." in site.cli("job", "run", "by-hand", "--dry-run")
    assert "by-hand: 1 done." in site.cli("job", "run", "by-hand")
    last = site.json("job", "show", "by-hand")["run"]["tasks"][0]["jobs"][0]
    assert site.json("job", "show", last["job"])["kind"] == "backup.make"
    assert last["job"] in site.cli("job", "show", "by-hand")
    assert [j["name"] for j in site.json("job", "list", "--saved")["saved"]] == ["by-hand"]
    assert "by-hand: 1 done." in site.cli("job", "watch", "by-hand")
    assert "job-ended" in site.cli("job", "cancel", "by-hand", expect=11)
    assert "job-scheduled" in site.cli("job", "remove", "homes", "--yes", expect=11)
    site.cli("job", "set", "by-hand", "--priority", "2")
    known(site, "by-hand", 2)
    site.cli("job", "remove", "by-hand", "--yes")

    # Who did it.
    (node,) = eventually(lambda: [n for n in site.json("node", "list")["nodes"] if n["state"] == "alive"])
    assert f"{node['node']} (" in site.cli("node", "show", node["node"])
    assert site.json("node", "show", node["name"])["repositories"] == ["vault"]
    assert "Nothing was said yet." in site.cli("asset", "changes"), "the API of a test does not look by itself"

    # What fails is said, by the exit code too.
    site.cli("policy", "add", "gone", "--kind", "files", "--path", "gone=/nowhere/at/all", "--to", "vault", "-s",
             "daily 05:00", "--off")  # fmt: skip
    known(site, "gone", 1)
    assert "failed" in site.cli("policy", "run", "gone", expect=4)
    site.cli("policy", "remove", "gone", "--yes")
    eventually(lambda: "policy-unknown" in site.run("policy", "show", "gone").stderr)
