"""Waiting ends with what there is to read, with the limit, and with an interrupt whenever it comes."""

from __future__ import annotations

import os
import signal
import socket
import threading
from time import monotonic
from typing import NoReturn

import pytest

from perftool.measure.waiting import readable

LONG_S = 100.0


class Interrupted(Exception):
    pass


def test_what_has_something_to_read_is_returned_at_once() -> None:
    ours, theirs = socket.socketpair()
    silent, other = socket.socketpair()
    with ours, theirs, silent, other:
        theirs.send(b"!")
        assert readable([silent, ours], LONG_S) == [ours]


@pytest.mark.parametrize("limit_s", [-1.0, 0.0, 0.01, 1.01])
def test_after_the_limit_there_is_none(limit_s: float) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        began_s = monotonic()
        assert readable([ours], limit_s) == []
        assert monotonic() - began_s >= limit_s


def test_a_signal_that_another_thread_gets_ends_it() -> None:
    """As one that arrives just before the system call does: no call is cut short by either."""

    def interrupt(*_: object) -> NoReturn:
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, interrupt)
    ours, theirs = socket.socketpair()
    is_waiting = threading.Event()

    def send() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
        is_waiting.wait()
        os.kill(os.getpid(), signal.SIGUSR1)

    thread = threading.Thread(target=send)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    began_s = monotonic()
    try:
        thread.start()
        threading.Timer(0.1, is_waiting.set).start()
        with ours, theirs, pytest.raises(Interrupted):
            readable([ours], LONG_S)
        assert monotonic() - began_s < LONG_S
    finally:
        thread.join()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
        signal.signal(signal.SIGUSR1, before)
