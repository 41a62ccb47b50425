"""Signals, sent to this very process."""

import os
import signal

import pytest

from vit_jax.parallel.preemption import StopSignals


def test_the_first_ctrl_c_is_remembered_and_the_second_stops_at_once(capfd):
    before = signal.getsignal(signal.SIGINT)
    with StopSignals() as stop:
        assert stop.code is None
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.code == 130
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    assert capfd.readouterr().err == "SIGINT: saves after this step, then stops\n"


def test_sigterm_may_come_again_and_ctrl_c_after_it():
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.code == 75
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.code == 130


def test_a_terminal_that_goes_saves_too_unless_that_is_ignored_as_under_nohup():
    before = signal.getsignal(signal.SIGHUP)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.code == 75
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.code is None
    finally:
        signal.signal(signal.SIGHUP, before)
