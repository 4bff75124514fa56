"""How the command line ends: 2 for what a user can mend, 128 + the number of a signal."""

from __future__ import annotations

import errno
import os
import signal

import pytest

from robo_razor.cli import commands as cli
from robo_razor.core.interrupts import SIGNALS, Interrupted, interruptible


def ends_with(monkeypatch, error):
    def fail(argv):
        raise error

    monkeypatch.setattr(cli, "_dispatch", fail)
    return cli.main(["doctor"])


@pytest.mark.parametrize(
    ("number", "status"),
    [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129), ("SIGUSR1", 138)],
)
def test_the_status_says_which_signal_it_was(monkeypatch, capsys, number, status):
    received = signal.Signals[number]
    assert received in SIGNALS
    assert ends_with(monkeypatch, Interrupted(received)) == status
    assert ("by SIG" in capsys.readouterr().err) == (number != "SIGINT")
    assert ends_with(monkeypatch, KeyboardInterrupt()) == 130


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EMFILE, errno.ENAMETOOLONG])
def test_what_the_system_refuses_is_one_paragraph(monkeypatch, capsys, code):
    error = OSError(code, os.strerror(code), "/data/run\nx")
    assert ends_with(monkeypatch, error) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert os.strerror(code) in message
    assert "/data/run x" in message


def test_a_closed_terminal_is_nothing_to_a_process_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with interruptible():
            os.kill(os.getpid(), signal.SIGHUP)
            with pytest.raises(Interrupted) as caught:
                os.kill(os.getpid(), signal.SIGUSR1)
        assert caught.value.signal == signal.SIGUSR1
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_postponed_signal_keeps_its_name():
    with interruptible() as interrupts:
        interrupts.postponed = True
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.pending
        with pytest.raises(Interrupted) as caught:
            interrupts.release()
    assert caught.value.signal == signal.SIGTERM
