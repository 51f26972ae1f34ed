"""Traps of the rewind that a walk on a shared server cannot show, and the tests that do: (trap, what comes of it, tests).

A test is `path::function`; that it exists is tested.
"""

from __future__ import annotations

ELSEWHERE: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("server killed, the end of its log lost (`sync_binlog=0`)", "capture stops: `capture-position-lost`; when written anew "
     "`capture-history-changed`",
     ("tests/crash/test_capture_stops.py::test_the_end_of_the_log_lost_in_a_crash",
      "tests/crash/test_capture_stops.py::test_the_end_of_the_log_lost_and_written_anew")),
    ("RESET MASTER while capture is away, or under it", "capture stops: `capture-position-lost` or `capture-history-changed`",
     ("tests/crash/test_capture_stops.py::test_reset_master_while_capture_is_away",
      "tests/crash/test_capture_stops.py::test_reset_master_and_more_steps_than_there_were",
      "tests/crash/test_capture_stops.py::test_reset_master_under_capture")),
    ("log purged before it was captured", "capture stops: `capture-purged`",
     ("tests/crash/test_capture_stops.py::test_log_purged_before_it_was_captured",)),
    ("failover to a copy with a log of its own", "capture stops: `capture-history-changed`",
     ("tests/crash/test_capture_stops.py::test_another_server_with_a_copy_of_an_older_state",)),
    ("two agents at once", "the later epoch writes, the earlier one is dropped and ends",
     ("tests/crash/test_capture_kills.py::test_an_agent_believed_dead_comes_back",
      "tests/crash/test_capture_kills.py::test_agents_that_start_at_the_same_moment")),
    ("capture or source killed between XA PREPARE and the outcome; prepared before the lineage", "one step where it is committed,"
     " none when rolled back; `capture-xa-unknown` where the source's log does not hold what was prepared",
     ("tests/crash/test_capture_xa.py::test_killed_between_prepare_and_outcome",
      "tests/crash/test_capture_xa.py::test_killed_within_the_parts_of_one_that_is_larger_than_a_record",
      "tests/crash/test_capture_xa.py::test_the_last_step_before_a_death_is_one",
      "tests/crash/test_capture_xa.py::test_prepared_before_the_lineage_began")),
    ("a rollback while an XA transaction stays prepared", "it runs; what is prepared is a step once it is committed, and undone "
     "like any other", ("tests/e2e/test_rewind_matrix.py::test_a_rollback_while_a_transaction_stays_prepared",)),
    ("definition changes, each kind of them", "crossed where rows stay where they are, else refused: `ddl`, `truncate`, `drop`",
     ("tests/unit/agents/rollback/test_redefined.py::test_what_leaves_rows_alone_is_crossed",
      "tests/unit/agents/rollback/test_redefined.py::test_what_rows_have_no_place_after_is_in_the_way",
      "tests/unit/agents/rollback/test_redefined.py::test_rows_thrown_away_are_not_there_for_a_way_that_comes_by_later")),
    ("incident events", "capture stops: `capture-incident`; a plan that meets one in an older log is refused",
     ("tests/unit/agents/test_cutting.py::test_what_is_not_understood_stops_after_the_steps_before_it",
      "tests/unit/agents/rollback/test_obstacles.py::test_an_incident_is_in_the_way")),
)  # fmt: skip
