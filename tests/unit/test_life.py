"""`Life`: each transition by its name, and what may be done after it."""

from __future__ import annotations

import time

import pytest

from tests.factories import Clock, make_record
from tornado_compas_session import ResponseAlreadySent
from tornado_compas_session.core.ids import hash_secret
from tornado_compas_session.core.life import Life
from tornado_compas_session.core.types import Identity, NewSecret, Saved

SECRET = "b" * 24
MINE = hash_secret(SECRET)
OTHER = hash_secret("o" * 24)


def found(presented=MINE, *, outdated=False, **record):
    life = Life()
    life.came_with(1)
    life.found(make_record(**record), presented, outdated=outdated)
    return life


def draw(life, handle="h" * 12, secret="n" * 24):
    return life.draw(lambda: handle, lambda: secret)


def regenerate(life, identity=None, now=1500.0):
    _, secret = draw(life, life.record.handle)
    new = NewSecret(life.record.secret_hash, hash_secret(secret), identity)
    life.regenerated(Saved(now + 60, now), new)
    return new


# -- how it begins ---------------------------------------------------------------------


def test_at_first_there_is_nothing():
    """No row, no cookie, nothing to be cleared."""
    life = Life()

    assert life.blank
    assert life.record is None
    assert life.secret is None
    assert not life.clears_cookie
    assert not life.may_regenerate
    assert not life.outdated
    assert not life.several
    assert not life.renewed
    assert life.renews_cookie
    life.check_open(cookie=True)
    life.check_cookie()


def test_found_with_the_current_secret():
    """It may be given a new one; and nothing is told to the browser."""
    life = found()

    assert life.current
    assert life.may_regenerate
    assert not life.blank
    assert life.secret is None
    assert life.shows is None
    assert not life.clears_cookie


def test_the_first_to_show_a_secret_notes_it():
    """Once: a save has written it then (pending)."""
    life = found(shown=None)
    assert life.shows == MINE
    life.saved(Saved(2000.0, 1100.0, None))

    assert life.shows is None
    assert life.record is not None
    assert 1100.0 == life.record.shown


def test_found_with_the_former_secret():
    """It reads and writes, but has no new secret made, and notes no showing."""
    life = found(OTHER, former_hash=OTHER, shown=None)

    assert not life.current
    assert not life.may_regenerate
    assert life.shows is None
    assert not life.clears_cookie


def test_the_former_secret_counts_where_the_answer_was_lost():
    """As long as nobody shows the one that was in it; the current one is as ever."""
    lost, usual = Life(), Life()
    lost.found(make_record(former_hash=OTHER, shown=None), OTHER, supersedes=True)
    usual.found(make_record(former_hash=OTHER), MINE, supersedes=True)

    assert OTHER == lost.superseding
    assert lost.record is not None
    seen = [lost.current]
    for shown in (None, 1100.0):
        lost.seen(lost.record._replace(shown=shown))
        seen.append(lost.current)
    assert [True, True, False] == seen
    assert usual.current
    assert usual.superseding is None
    assert not usual.outdated


def test_only_the_current_secret_can_be_outdated():
    """The cookie of a former one is replaced by nobody: its successor has left."""
    assert found(outdated=True).outdated
    assert not found(OTHER, former_hash=OTHER, outdated=True).outdated


def test_twins_are_several_cookies():
    """So the next cookie that leaves clears the others."""
    for cookies, several in ((0, False), (1, False), (2, True), (8, True)):
        life = Life()
        life.came_with(cookies)
        assert several == life.several


def test_a_stranger_is_told_nothing():
    """The row has moved on: no cookie is touched, whatever happens."""
    life = Life()
    life.found_strange("7")

    assert life.strange
    assert "7" == life.strange_user
    assert not life.clears_cookie
    life.end()
    assert life.doomed is None
    assert not life.clears_cookie
    life = Life()
    life.found_nothing()
    life.found_strange("7")
    assert not life.clears_cookie


def test_found_gone_is_cleared_for_a_moment_only(monkeypatch):
    """After a second the browser may have another cookie, which nobody may clear."""
    clock = Clock(100.0)
    monkeypatch.setattr(time, "monotonic", clock)
    life = Life()
    life.found_nothing()
    cleared = []
    for clock.now in (100.0, 101.0, 101.1):
        cleared.append(life.clears_cookie)
        assert not life.blank

    assert [True, True, False] == cleared
    life = Life()
    life.found_nothing(waited=2)  # it has come in slowly
    assert not life.clears_cookie


# -- what may be done ------------------------------------------------------------------


def test_once_the_headers_have_left_no_cookie_follows():
    """Data of a stored session is free; whatever needs a cookie raises why."""
    life, new = found(), Life()
    for one in (life, new):
        one.headers_left("they have left")
        assert not one.renews_cookie
        with pytest.raises(ResponseAlreadySent, match="they have left"):
            one.check_open(cookie=True)
        with pytest.raises(ResponseAlreadySent, match="they have left"):
            one.check_cookie()
    life.check_open()
    with pytest.raises(ResponseAlreadySent):
        new.check_open()


def test_content_in_the_cookie_is_as_late_as_its_cookie():
    """Without a store the data itself needs the headers."""
    life = found()
    life.kept_in_cookie()
    life.check_open()
    life.headers_left("they have left")
    with pytest.raises(ResponseAlreadySent):
        life.check_open()


def test_after_the_end_nothing_follows():
    """Until an error page replaces the response."""
    life = found()
    assert not life.is_finished
    life.headers_left("they have left")
    life.finish("it is finished")
    assert life.is_finished
    with pytest.raises(ResponseAlreadySent, match="it is finished"):
        life.check_open()
    life.reopen()

    assert not life.is_finished
    life.check_open(cookie=True)
    life.check_cookie()


def test_some_responses_renew_no_cookie():
    """A shared one, a 304; and where no cookie arrives. Nothing else is refused."""
    life = found()
    life.no_renewal()
    assert not life.renews_cookie
    life.check_cookie()
    life = found()
    life.no_cookie("path")
    assert "path" == life.unreachable
    assert not life.renews_cookie
    life.check_open(cookie=True)


# -- a new row -------------------------------------------------------------------------


def test_what_was_drawn_is_drawn_again_until_it_is_known():
    """A try whose reply was lost is repeated with the same id (once)."""
    life = Life()

    assert ("h" * 12, "n" * 24) == draw(life)
    assert ("h" * 12, "n" * 24) == draw(life, "x" * 12, "y" * 24)
    life.redraw()
    assert ("x" * 12, "y" * 24) == draw(life, "x" * 12, "y" * 24)


def test_created():
    """The browser is yet to be sent the secret; a further one is not made till then."""
    life = Life()
    life.regenerating = True
    handle, secret = draw(life)
    record = make_record(handle=handle, secret_hash=hash_secret(secret))
    life.created(record)

    assert record == life.record
    assert secret == life.secret
    assert life.current
    assert life.renewed
    assert not life.regenerating
    assert not life.may_regenerate
    assert not life.clears_cookie


# -- a new secret ----------------------------------------------------------------------


def test_regenerated_for_the_same_visitor():
    """The former secret is known, the epoch stays, and nothing was shown yet."""
    life = found(outdated=True)
    life.regenerating = True
    new = regenerate(life)

    assert life.record is not None
    assert (new.new, MINE, 0) == life.record[2:5]
    assert (1500.0, None) == (life.record.turned, life.record.shown)
    assert (1500.0, 1560.0) == (life.record.used, life.record.expires)
    assert "n" * 24 == life.secret
    assert not life.regenerating
    assert not life.outdated
    assert life.renewed


@pytest.mark.parametrize("user", ["7", None])
def test_regenerated_for_another_visitor(user):
    """A sign-in and a sign-out: no former secret, and the epoch shuts out the rest."""
    life = found()
    regenerate(life, Identity(user))

    assert life.record is not None
    assert (None, 1) == (life.record.former_hash, life.record.epoch)


def test_one_new_secret_for_each_response():
    """`regenerate()` twice is once, and its own new secret notes no showing (once)."""
    life = found(shown=None)
    regenerate(life)

    assert not life.may_regenerate
    assert life.shows is None
    life.saved(Saved(2000.0, 1600.0))
    assert life.record is not None
    assert life.record.shown is None
    assert "n" * 24 == life.secret


def test_nothing_is_left_of_what_would_do_no_good():
    """A former secret's `regenerate()` is done without anything to do."""
    life = found(OTHER, former_hash=OTHER)
    life.regenerating = True
    life.regeneration_done()

    assert not life.regenerating
    assert life.secret is None


# -- the end ---------------------------------------------------------------------------


def test_ended():
    """Doomed first; the cookie is cleared once the row is deleted."""
    life = found()
    record = life.record
    life.end()
    assert life.doomed == record
    assert life.record is None
    assert not life.blank
    assert not life.clears_cookie
    life.ended(done=True)

    assert life.doomed is None
    assert life.clears_cookie
    assert not life.blank


def test_an_end_that_came_too_late_clears_nothing():
    """The row is another visitor's by now, or was ended by somebody else."""
    life = found()
    life.end()
    life.ended(done=False)

    assert life.doomed is None
    assert not life.clears_cookie
    assert life.blank


def test_the_first_row_is_the_one_that_is_ended():
    """Ending twice, or once more after a new one was begun, forgets nothing."""
    life = found(handle="f" * 12)
    life.end()
    life.end()
    assert life.doomed is not None
    assert "f" * 12 == life.doomed.handle


def test_ended_and_made_anew():
    """The new session's cookie goes out, and none is cleared."""
    life = found()
    life.end()
    life.ended(done=True)
    _, secret = draw(life)
    life.created(make_record(handle="h" * 12))

    assert secret == life.secret
    assert not life.clears
    assert not life.clears_cookie


def test_what_was_on_its_way_when_it_was_ended_ends_as_well():
    """A row that is made now, one that is another visitor's now, one that is saved."""
    new = Life()
    draw(new)
    new.end()
    new.created(make_record(handle="h" * 12))
    assert new.doomed is not None
    assert "h" * 12 == new.doomed.handle
    assert new.record is None
    for identity, epoch in ((None, 0), (Identity("7"), 1)):
        life = found()
        secret = NewSecret(MINE, OTHER, identity)
        life.end()
        life.saved(Saved(2000.0, 1600.0))
        life.regenerated(Saved(2000.0, 1600.0), secret)
        assert life.record is None
        assert life.doomed is not None
        assert epoch == life.doomed.epoch
        life.spare()
        life.regenerated(Saved(2000.0, 1600.0), secret)
        assert life.doomed is None


def test_a_failed_request_ends_nothing():
    """The row is spared, and so is the cookie."""
    life = found()
    life.end()
    life.spare()

    assert life.doomed is None
    assert not life.clears_cookie
    assert life.blank


def test_an_end_forgets_a_new_secret():
    """Of a row that is gone no secret leaves."""
    life = found()
    regenerate(life)
    life.end()

    assert life.secret is None
    assert not life.may_regenerate


# -- what others did meanwhile ---------------------------------------------------------


def test_lost():
    """Gone, or another visitor's: the request is a stranger from now on."""
    life = found()
    life.lost()

    assert life.strange
    assert life.strange_user is None
    assert life.record is None
    assert not life.clears_cookie
    assert not life.may_regenerate


def test_unbound():
    """The row is left to whoever has it: this becomes a session like any new one."""
    life = Life()
    life.found_strange("7")
    life.unbound()

    assert not life.strange
    assert life.record is None
    assert not life.clears_cookie
    life = found()
    life.unbound()
    assert life.record is None
    assert not life.current


def test_read_again():
    """Another request has turned the secret meanwhile, or has not."""
    life = found()
    life.saved(Saved(2000.0, 1100.0))
    assert life.renewed
    assert life.record is not None
    life.seen(life.record._replace(data='{"a":1}'))
    assert '{"a":1}' == life.record.data
    assert life.current
    assert not life.renewed
    life.seen(life.record._replace(secret_hash=OTHER, former_hash=MINE))
    assert not life.current
    life.seen(life.record)

    assert not life.current


def test_rolled_back():
    """What a block of `lock()` did is undone: its end, its new secret, its mark."""
    for undo in (
        Life.end,
        regenerate,
        lambda life: setattr(life, "regenerating", True),
    ):
        life = found()
        record, checkpoint = life.record, life.checkpoint()
        undo(life)
        later = record._replace(data='{"later":1}')
        life.roll_back(checkpoint, later)
        assert later == life.record
        assert life.doomed is None
        assert life.secret is None
        assert not life.regenerating
        assert life.may_regenerate
        assert not life.clears_cookie


def test_lifetimes_of_its_own_are_the_rows():
    """Once they are written."""
    life = found()
    life.owns(60, 600)
    assert life.record is not None
    assert (60, 600) == (life.record.own_idle, life.record.own_absolute)
    Life().owns(60, 600)
