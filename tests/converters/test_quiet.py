"""What other packages print stays off the terminal, and the collector rests, in the body alone."""

import gc
import logging
import sys
import warnings

import pytest

from shufflectl.converters.collector import paused_collector
from shufflectl.converters.quiet import quiet


def chatter() -> None:
    logging.getLogger("coremltools").error("logged")
    warnings.warn("warned", stacklevel=1)
    sys.stdout.write("printed\n")
    sys.stderr.write("complained\n")


def test_nothing_is_heard_in_the_body(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with quiet():
        chatter()
    assert ("", "") == capfd.readouterr()
    assert [] == caplog.records


def test_everything_is_heard_again_after_a_failing_body(capfd: pytest.CaptureFixture[str]) -> None:
    level = logging.getLogger("coremltools").level
    with pytest.raises(KeyError), quiet():
        raise KeyError
    assert level == logging.getLogger("coremltools").level
    with pytest.warns(UserWarning, match="warned"):
        chatter()
    out, err = capfd.readouterr()
    assert "printed" in out
    assert "complained" in err


def test_everything_is_heard_when_verbose(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "shufflectl"), pytest.warns(UserWarning, match="warned"), quiet():
        chatter()
    assert "printed" in capfd.readouterr().out
    assert ["logged"] == [record.message for record in caplog.records]


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_rests_in_the_body_and_is_as_before_after_it(*, enabled: bool) -> None:
    (gc.enable if enabled else gc.disable)()
    try:
        with paused_collector(), paused_collector():
            assert not gc.isenabled()
        assert enabled == gc.isenabled()
        assert 0 == gc.get_freeze_count()
    finally:
        gc.enable()


def test_what_the_caller_has_frozen_stays_frozen() -> None:
    gc.freeze()
    try:
        count = gc.get_freeze_count()
        with paused_collector():
            pass
        assert count == gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
