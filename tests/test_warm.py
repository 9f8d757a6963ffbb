"""What is done before "ready" is said."""

import pytest

from voxcli.errors import ModelError
from voxcli.live.warm import warm_up
from voxcli.session import Session, Turn
from voxcli.testing import FakeEngine


def test_the_engine_answers_once_in_the_session_and_no_longer_than_it_must() -> None:
    session = Session("kitchen", "Be short.", (Turn("a", "b"),))
    counts: list[int] = []
    engine = FakeEngine([["Hello", ", you", " there"]], before_delta=counts.append)
    warm_up(engine, session)
    ((asked, utterance),) = engine.asked
    assert asked == session
    assert utterance.clip  # takes the whole way, the ears included
    assert counts == [0, 1]  # asked for the second piece, it saw the interrupt
    assert engine.settled == [session]  # without what it was asked to warm up


def test_an_engine_that_can_not_answer_is_told_before_ready() -> None:
    with pytest.raises(ModelError):
        warm_up(FakeEngine([ModelError("out of memory")]), Session())
