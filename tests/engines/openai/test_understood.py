"""What a server understood: one more request, without the conversation, which can be left at any time."""

import threading

import pytest

from tests.engines.openai.test_engine import CLIP, OPTIONS, SPOKEN, engine_for, server
from tests.support.openai_server import Answer, OpenAIServer, refuses, says, sends
from tests.support.turns import nothing_hangs
from voxcli.core.memory import Memory
from voxcli.core.protocols import Utterance
from voxcli.core.session import Session
from voxcli.core.turn import TurnEnded
from voxcli.core.understanding import INSTRUCTION, LINE_CHARACTERS, LINE_TOKENS, Understanding, UnderstoodMode
from voxcli.engines.openai.pool import RemotePool
from voxcli.engines.openai.request import audio_part
from voxcli.errors import RemoteError

__all__ = ["nothing_hangs", "server"]  # fixtures


def test_the_request_holds_the_clip_and_the_instruction_alone(server: OpenAIServer) -> None:
    server.queue(says("My name", " is Anna."))
    assert "".join(engine_for(server).understand(SPOKEN) or ()) == "My name is Anna."
    assert server.chats[-1].body == {
        "model": "tiny",
        "messages": [
            {"role": "user", "content": [audio_part(CLIP, OPTIONS.audio_style), {"type": "text", "text": INSTRUCTION}]}
        ],
        "max_tokens": LINE_TOKENS,
        "temperature": 0,
        "stream": True,
    }


def test_a_turn_asks_a_second_time_only_where_it_is_wanted(server: OpenAIServer) -> None:
    modes: tuple[UnderstoodMode, ...] = ("off", "remember")
    for mode, requests in zip(modes, (1, 3), strict=True):
        memory = Memory(Session(), understood=mode)
        *_, ended = memory.take_turn(engine_for(server), SPOKEN, threading.Event())
        assert len(server.chats) == requests
    assert isinstance(ended, TurnEnded)
    assert ended.report.understood == memory.session.turns[0].understood != ""
    assert (ended.report.model_passes, ended.report.additional_generations) == (1, 1)


def test_typed_text_is_not_asked_about(server: OpenAIServer) -> None:
    assert engine_for(server).understand(Utterance(None, "Hello")) is None
    assert server.chats == []


def test_it_can_be_left_while_the_server_is_silent(server: OpenAIServer) -> None:
    server.queue(server.hangs())
    steps = engine_for(server).understand(SPOKEN)
    assert steps
    assert [next(steps) for _ in range(3)] == [""] * 3, "a short wait each"
    steps.close()
    assert server.left.wait(30)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (refuses(500, {"error": {"message": "out of order"}}), "out of order"),
        (sends("My", then=lambda exchange: exchange.drop()), "127.0.0.1"),
    ],
)
def test_it_is_asked_once(server: OpenAIServer, answer: Answer, message: str) -> None:
    server.queue(answer)
    with pytest.raises(RemoteError, match=message):
        list(engine_for(server).understand(SPOKEN) or ())
    assert len(server.chats) == 1


def test_a_server_that_never_answers_is_left(server: OpenAIServer) -> None:
    server.queue(server.hangs())
    with pytest.raises(RemoteError, match="did not answer"):
        list(engine_for(server, first_token_seconds=0.2).understand(SPOKEN) or ())


def test_an_answer_without_end_is_cut(server: OpenAIServer) -> None:
    server.queue(says(*["\x1b[2J[INST] word "] * 1000))
    understanding = Understanding("show")
    understanding.begin(engine_for(server), SPOKEN)
    while understanding.advance():
        pass
    assert len(understanding.text) <= LINE_CHARACTERS
    assert understanding.text.isprintable()


def test_a_pool_asks_one_of_its_servers(server: OpenAIServer) -> None:
    pool = RemotePool([engine_for(server)], 1)
    server.queue(says("Anna."))
    assert "".join(pool.understand(SPOKEN)) == "Anna."
    server.queue(refuses(400, {"error": {"message": "no audio"}}))
    with pytest.raises(RemoteError, match="no audio"):
        list(pool.understand(SPOKEN))
    server.queue(says("Again."))
    left = pool.understand(SPOKEN)
    next(left)
    left.close()
    assert "".join(pool.understand(SPOKEN)) != "", "its place in the pool is free again"


def test_a_line_that_waits_for_a_busy_pool_can_be_cancelled(server: OpenAIServer) -> None:
    pool = RemotePool([engine_for(server)], 1)
    busy = pool.reply(Session(), SPOKEN, threading.Event())
    next(busy)
    understanding = Understanding("show")
    understanding.begin(pool, SPOKEN)
    assert [understanding.advance() for _ in range(3)] == [True] * 3, "a short wait each"
    understanding.cancel()
    assert not understanding.advance()
    assert len(server.chats) == 1
    busy.close()
    assert "".join(pool.understand(SPOKEN)) != "", "it has taken no place in the pool"
