"""Fault injection."""

import errno
import subprocess
import sys

import pytest

from tinyllm.errors import UserError
from tinyllm.utils.fault_injection import EXIT_CODE, POINTS, VARIABLE, fault, makes_loss_nan, parsed


def test_no_fault_is_injected_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    for point in POINTS:
        fault(point, step=5)
    assert not makes_loss_nan(step=5)


def test_a_step_of_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "raise@step=5,rank=1")
    fault("step", step=5, rank=0)
    fault("step", step=4, rank=1)
    fault("evaluate", step=5, rank=1)
    with pytest.raises(RuntimeError, match="raise@step=5,rank=1"):
        fault("step", step=5, rank=1)


def test_a_fault_can_wait_for_the_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "nospace@save:mid_write:2")
    fault("save:mid_write")
    fault("save:before_write")
    with pytest.raises(OSError) as raised:
        fault("save:mid_write")
    assert raised.value.errno == errno.ENOSPC
    fault("save:mid_write")


def test_the_rank_is_that_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "memory@save:after_sync,rank=1")
    fault("save:after_sync")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(MemoryError):
        fault("save:after_sync")


def test_a_spoilt_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "nan@step=7,rank=1")
    assert not makes_loss_nan(step=7, rank=0) and not makes_loss_nan(step=6, rank=1)
    assert makes_loss_nan(step=7, rank=1)
    fault("step", step=7, rank=1)
    monkeypatch.setenv(VARIABLE, "nan@step")
    assert makes_loss_nan(step=1) and makes_loss_nan(step=2)


@pytest.mark.parametrize(("action", "code"), [("kill", -9), ("term", -15), ("usr1", -10), ("exit", EXIT_CODE)])
def test_the_process_ends(action: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f"{action}@evaluate")
    program = "from tinyllm.utils.fault_injection import fault; fault('step'); fault('evaluate')"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == code


@pytest.mark.parametrize("text", ["kill", "die@step=3", "kill@save:nowhere", "kill@step=x", "kill@step,day=1"])
def test_an_invalid_fault_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="invalid fault specification"):
        parsed(text)
