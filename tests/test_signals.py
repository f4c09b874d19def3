import signal

import pytest
from scenes import ctrl_c_heard

from segearth_cli.signals import handled_by, signals_wait


def test_signals_wait_until_the_end_of_the_block_also_where_it_fails():
    done = []

    @signals_wait()
    def work():
        signal.raise_signal(signal.SIGINT)
        done.append("all")
        raise ValueError

    with ctrl_c_heard(), pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["all"]


def test_what_is_ignored_stays_ignored_and_handlers_come_back():
    came = []
    with ctrl_c_heard():
        with handled_by(lambda number, frame: came.append(number), signal.SIGINT):
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with handled_by(lambda number, frame: came.append(number), signal.SIGINT):
            signal.raise_signal(signal.SIGINT)
    assert came == [signal.SIGINT]
