"""Signals that end a call: at once where nothing would be lost, else when the finished epochs are saved."""

from __future__ import annotations

import os
import signal
import time

import pytest

from balancebench_udi import interruption
from balancebench_udi.interruption import Stopped, asked, listening, postponed, unsaved


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", interruption.HEARD)
def test_a_signal_ends_at_once_where_nothing_is_unsaved(number):
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as stop, listening():
        send(number)
    assert stop.value.number == number
    assert isinstance(stop.value, KeyboardInterrupt)  # what knows Ctrl-C knows this
    assert signal.getsignal(number) is before
    assert not asked()


def stopped(work, **kind):
    """The signal that ended ``work``."""
    with pytest.raises(Stopped) as stop, listening(**kind):
        work()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    return stop.value.number


def test_it_waits_for_what_is_unsaved(capfd):
    went_on = []

    def work():
        unsaved(True)
        send(signal.SIGTERM)
        assert asked()
        unsaved(True)  # another epoch
        went_on.append(True)
        unsaved(False)
        went_on.append(False)

    assert stopped(work) == signal.SIGTERM
    assert went_on == [True]
    assert "stopping after this epoch" in capfd.readouterr().err


def test_a_second_signal_waits_for_nothing():
    def work():
        unsaved(True)
        send(signal.SIGTERM)
        send(signal.SIGINT)
        pytest.fail("it went on")

    assert stopped(work) == signal.SIGINT


def test_a_worker_does_not_count_signals():
    went_on = []

    def work():
        unsaved(True)
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        went_on.append(True)
        unsaved(False)

    assert stopped(work, worker=True) == signal.SIGTERM
    assert went_on


def test_an_epoch_that_takes_too_long_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(interruption, "PATIENCE", 0.05)

    def work():
        unsaved(True)
        send(signal.SIGTERM)
        time.sleep(30)
        pytest.fail("it waited")

    assert stopped(work) == signal.SIGTERM


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with listening():
            send(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_block_that_must_not_be_torn_ends_first():
    ended = []

    def work():
        with postponed():
            send(signal.SIGTERM)
            ended.append(True)
        pytest.fail("it went on")

    assert stopped(work) == signal.SIGTERM
    assert ended
