"""Several servers as one engine: who gets a request, who is left out, and that nothing is lost."""

import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from tests.engines.openai.test_engine import OPTIONS, SPOKEN, ask, engine_for, options
from tests.support.openai_server import REPLY, WAIT_SECONDS, Exchange, OpenAIServer, refuses, says
from voxcli.core.protocols import Engine, PassReport, Utterance
from voxcli.core.session import Session
from voxcli.engines import factory
from voxcli.engines.openai.pool import RemotePool
from voxcli.engines.openai.tool_calls import Round
from voxcli.errors import RemoteError
from voxcli.servers.errors import RequestRefusedError

REPORT = PassReport(1, 2, 0, 3)


class Scripted(Engine):
    """An engine that does, for each reply, what stands next in its script: text, an error, or both."""

    def __init__(self, *script: "str | RemoteError | tuple[str, RemoteError]", model: str = "tiny") -> None:
        self.name = "remote"
        self.model = model
        self.requests = 0
        self.closed = False
        self._script = list(script)

    def reply(
        self, session: Session, utterance: Utterance, interrupt: threading.Event, rounds: list[Round] | None = None
    ) -> Generator[str, None, PassReport]:
        self.requests += 1
        step = self._script.pop(0) if self._script else "fine"
        text, error = step if isinstance(step, tuple) else (step, None) if isinstance(step, str) else ("", step)
        if text:
            yield text
        if error:
            raise error
        return REPORT

    def close(self) -> None:
        self.closed = True


class Clock:
    """A clock that advances at each reading."""

    def __init__(self, step_seconds: float = 2.0) -> None:
        self.now = 0.0
        self._step_seconds = step_seconds

    def __call__(self) -> float:
        self.now += self._step_seconds
        return self.now


def gone() -> RemoteError:
    return RemoteError("it is gone", hint="start it")


def text_of(pool: RemotePool) -> str:
    return "".join(ask(pool)[0])


def test_a_reply_comes_whole_and_its_first_token_is_told() -> None:
    pool = RemotePool([Scripted("Hello.")], 1)
    assert ask(pool) == (["", "Hello."], REPORT)


def test_a_request_goes_on_elsewhere_where_a_server_fails_or_breaks_off() -> None:
    first, second = Scripted(("Hel", gone())), Scripted("Hello.")
    pool = RemotePool([first, second], 1)
    assert text_of(pool) == "Hello."
    assert (first.requests, second.requests) == (1, 1)


def test_a_server_that_failed_is_left_out_and_asked_again_later() -> None:
    clock = Clock(0.0)
    first, second = Scripted(gone()), Scripted()
    pool = RemotePool([first, second], 1, clock=clock)
    for _ in range(5):
        assert text_of(pool) == "fine"
    assert (first.requests, second.requests) == (1, 5)
    clock.now += 1.5
    with closing(pool.reply(Session(), SPOKEN, threading.Event())) as reply:
        assert next(reply) == ""  # the second is busy
        assert text_of(pool) == "fine"
    assert first.requests == 2


def test_what_any_server_would_refuse_is_asked_of_one() -> None:
    first, second = Scripted(RequestRefusedError("too big")), Scripted()
    with pytest.raises(RequestRefusedError):
        ask(RemotePool([first, second], 1))
    assert second.requests == 0


def test_a_request_that_every_server_fails_on_fails() -> None:
    first, second = (Scripted(*[gone() for _ in range(50)]) for _ in range(2))
    pool = RemotePool([first, second], 1, patience_seconds=5, clock=Clock())
    with pytest.raises(RemoteError, match="it is gone") as caught:
        ask(pool)
    assert caught.value.hint == "start it"


def test_an_outage_is_waited_out_and_a_long_one_is_not() -> None:
    only = Scripted(*[gone() for _ in range(4)])
    assert text_of(RemotePool([only], 1, clock=Clock())) == "fine"
    assert only.requests == 5
    dead = Scripted(*[gone() for _ in range(100)])
    pool = RemotePool([dead], 1, patience_seconds=20, clock=Clock())
    for _ in range(10):
        with pytest.raises(RemoteError, match="it is gone"):
            ask(pool)
    assert dead.requests < 20, "once patience is over, requests fail at once"


def test_whoever_waits_can_be_interrupted() -> None:
    pool = RemotePool([Scripted("a")], 1)
    busy = pool.reply(Session(), SPOKEN, threading.Event())
    assert next(busy) == ""
    interrupt = threading.Event()
    threading.Timer(0.05, interrupt.set).start()
    assert ask(pool, interrupt=interrupt) == ([], PassReport(0, 0, 0, 0))
    assert list(busy) == ["a"]


def test_it_is_called_as_its_models_and_closes_all() -> None:
    engines = [Scripted(model="a"), Scripted(model="a"), Scripted(model="b")]
    pool = RemotePool(engines, 4)
    assert (pool.name, pool.model, pool.replies_at_once) == ("remote", "a, b", 12)
    pool.prefill_history(Session())
    pool.close()
    assert all(engine.closed for engine in engines)


# --- Real servers --------------------------------------------------------------------------------


def test_requests_spread_and_no_server_gets_more_than_it_is_to() -> None:
    with OpenAIServer() as first, OpenAIServer() as second:
        full = threading.Barrier(6)

        def answer(exchange: Exchange) -> None:
            full.wait(WAIT_SECONDS)  # all six, or it never ends
            says(*REPLY)(exchange)

        first.always = second.always = answer
        pool = RemotePool([engine_for(first), engine_for(second)], 3)
        with ThreadPoolExecutor(18) as threads:
            replies = list(threads.map(lambda _: text_of(pool), range(18)))
    assert replies == ["".join(REPLY)] * 18
    assert (first.most_in_flight, second.most_in_flight) == (3, 3)


def test_none_is_lost_when_a_server_is_killed() -> None:
    with OpenAIServer() as stays, OpenAIServer() as dies:
        served = threading.Semaphore(0)

        def answer(exchange: Exchange) -> None:
            served.release()
            says(exchange.request.body["messages"][0]["content"])(exchange)

        dies.always = answer
        stays.always = lambda exchange: says(exchange.request.body["messages"][0]["content"])(exchange)
        pool = RemotePool([engine_for(stays), engine_for(dies, retries=0)], 4)
        texts = [f"question {number}" for number in range(200)]
        with ThreadPoolExecutor(8) as threads:
            submitted = [threads.submit(ask, pool, None, Utterance(None, text)) for text in texts]
            for _ in range(20):
                assert served.acquire(timeout=WAIT_SECONDS)
            dies.kill()
            replies = ["".join(future.result()[0]) for future in submitted]
    assert replies == texts
    assert 20 <= len(dies.chats) < 200


def test_a_server_that_comes_back_is_asked_again() -> None:
    with OpenAIServer() as server:
        server.queue(refuses(503), refuses(503))
        assert text_of(RemotePool([engine_for(server, retries=0)], 1, clock=Clock())) == "".join(REPLY)
        assert len(server.chats) == 3


def test_a_pool_is_opened_with_the_servers_that_answer() -> None:
    notices: list[str] = []
    with OpenAIServer() as server, OpenAIServer() as dead:
        dead.kill()
        pool = factory.open_pool(options(), [server.url, dead.url, server.url], 2, notices.append)
        assert (pool.model, pool.replies_at_once) == ("tiny", 2)
        assert text_of(pool) == "".join(REPLY)
        with pytest.raises(RemoteError, match="nothing listens"):
            factory.open_pool(options(), [dead.url], 2, notices.append)
    assert any("left out: nothing listens" in notice for notice in notices)
    assert OPTIONS.model == pool.model
