"""Made once, when it is wanted, and not in the loop's thread."""

import asyncio
import threading

import pytest
from zgate_gateway.api.later import Later


async def answer(scope, receive, send):
    await send({"type": "answer", "to": scope["path"], "heard": await receive()})


class Maker:
    def __init__(self):
        self.threads = []
        self.failures = 0
        self.may_end = threading.Event()

    def __call__(self):
        self.threads.append(threading.current_thread())
        assert self.may_end.wait(10)
        if self.failures:
            self.failures -= 1
            raise ImportError("nothing there")
        return answer


async def ask(app, path):
    sent = []

    async def receive():
        return "heard"

    async def send(message):
        sent.append(message)

    await app({"path": path}, receive, send)
    return sent


async def test_many_first_requests_make_it_once_while_the_loop_goes_on():
    maker = Maker()
    app = Later(maker)
    requests = [asyncio.create_task(ask(app, f"/{number}")) for number in range(3)]
    while not maker.threads:
        await asyncio.sleep(0.001)
    maker.may_end.set()
    answers = await asyncio.gather(*requests)
    assert answers == [
        [{"type": "answer", "to": f"/{number}", "heard": "heard"}] for number in range(3)
    ]
    assert len(maker.threads) == 1
    assert maker.threads[0] is not threading.main_thread()


async def test_who_has_made_it_before_waits_for_nothing():
    maker = Maker()
    maker.may_end.set()
    app = Later(maker)
    assert await app.made() is answer
    await ask(app, "/")
    assert len(maker.threads) == 1


async def test_what_cannot_be_made_is_tried_again():
    maker = Maker()
    maker.failures = 1
    maker.may_end.set()
    app = Later(maker)
    with pytest.raises(ImportError):
        await ask(app, "/")
    assert await ask(app, "/")
