"""
What holds on one server, again: user sessions, the cleaner, migrations, and with two
processes the counts, the sign-outs and the regenerations.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tornado.ioloop import IOLoop

from tests.integration.test_cleaner import (
    test_expired_go_and_live_stay,
    test_many_at_once_delete_each_row_once,
    test_one_of_many_works_at_a_time,
    test_session_locks_are_not_used,
)
from tests.integration.test_migrations import (
    test_failing_migration_leaves_nothing_behind,
    test_many_at_once_apply_each_once,
    test_pending_looks_and_changes_nothing,
    test_second_time_does_nothing,
)
from tests.integration.test_user_sessions import (
    test_a_session_ends_the_others_and_lists_its_devices,
    test_a_sign_in_beside_a_busy_session_is_never_the_one_that_ends,
    test_a_sign_in_can_end_all_other_sessions_at_once,
    test_a_sign_in_inside_of_a_lock_keeps_the_bound,
    test_after_a_password_change_only_this_session_is_left,
    test_all_devices_are_listed_and_one_is_ended_there,
    test_everywhere_else_is_one_call,
    test_more_than_so_many_sessions_end_the_one_unused_longest,
    test_sign_ins_at_once_keep_the_bound,
    test_signing_in_again_here_costs_no_other_session,
)
from tests.reliability.conftest import applications
from tests.reliability.test_increments import (
    test_every_increment_is_counted_once,
    test_two_processes_count_together,
)
from tests.reliability.test_regenerate_race import test_one_live_id_and_nothing_lost
from tests.reliability.test_signout_race import test_no_session_comes_back
from tornado_compas_session import PostgresSessionStore

__all__ = [
    "applications",
    "test_a_session_ends_the_others_and_lists_its_devices",
    "test_a_sign_in_beside_a_busy_session_is_never_the_one_that_ends",
    "test_a_sign_in_can_end_all_other_sessions_at_once",
    "test_a_sign_in_inside_of_a_lock_keeps_the_bound",
    "test_after_a_password_change_only_this_session_is_left",
    "test_all_devices_are_listed_and_one_is_ended_there",
    "test_every_increment_is_counted_once",
    "test_everywhere_else_is_one_call",
    "test_expired_go_and_live_stay",
    "test_failing_migration_leaves_nothing_behind",
    "test_many_at_once_apply_each_once",
    "test_many_at_once_delete_each_row_once",
    "test_more_than_so_many_sessions_end_the_one_unused_longest",
    "test_no_session_comes_back",
    "test_one_live_id_and_nothing_lost",
    "test_one_of_many_works_at_a_time",
    "test_pending_looks_and_changes_nothing",
    "test_second_time_does_nothing",
    "test_session_locks_are_not_used",
    "test_sign_ins_at_once_keep_the_bound",
    "test_signing_in_again_here_costs_no_other_session",
    "test_two_processes_count_together",
]


@pytest.fixture
def store(io_loop: IOLoop, database: str) -> Iterator[PostgresSessionStore]:
    """One that asks the coordinator."""
    made = io_loop.run_sync(lambda: PostgresSessionStore.connect(database))
    yield made
    io_loop.run_sync(made.close)
