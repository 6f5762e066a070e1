"""Random arguments of every program: accepted, or refused in one line, never a traceback."""

import random
from collections.abc import Iterator

import pytest

import tinyllm
from tinyllm.config.cli.arguments import read
from tinyllm.config.compose import compose
from tinyllm.config.option_files import groups
from tinyllm.config.schema import SCHEMAS, fields_of
from tinyllm.errors import UserError

VALUES = (
    *("", " ", "'", '"', "''", "\"'", "[", "]", "{", "}", "(", "[]", "{}", "[[", "{a", "{a:b}", "[1,[2]]", "a,b", ","),
    *(
        "${",
        "${}",
        "${a",
        "${nope}",
        "${oc.env:}",
        "${oc.env:TINYLLM_NOWHERE}",
        "${seed}",
        "\\${",
        "${${}}",
        "${a.b.c}",
    ),
    *("é", "你好", "🙂", "\u2028", "\n", "a\nb", "\t", "\x00", "a\x00b", "\x1b[31m", "\ud800", "x" * 5000, "9" * 400),
    *("-1", "-0", "1e400", "-1e400", "inf", "-inf", "nan", "NaN", "1_0", "0x10", "010", "1e3", "2**9", "10**99", "1/0"),
    *("null", "~", "None", "true", "True", "yes", "???", "choice(1,2)", "range(1,3)", "interval(1,2)", "glob(*)"),
    *("int(x)", "tag(a,b)", "@", "a@b", ":", "a:b", "=", "a=b", "#", "%s", "\\", "..", "/", "*", "[" * 300, "{a:" * 60),
)
OTHERS = (
    *(
        "",
        "=",
        "==",
        "=1",
        "a",
        "a.b",
        "+",
        "+a",
        "++",
        "~",
        "~seed",
        "~seed=1",
        "-",
        "--",
        "---",
        "-x",
        "--x=1",
        "@=1",
    ),
    *(".=1", "a..b=1", ".a=1", "a.=1", "model@x=1", "model@:=1", "seed@a:b=1", "é=1", "a b=1", "a\x00=1", "[0]=1"),
    *("model[0]=1", "hydra=1", "hydra.x=1", "hydra/x=1", "hydra.sweep=1", "experiment=", "experiment=../x", "--cfg"),
    *("--config-dir", "--config-dir=", "--config-dir=/dev/null", "--info=x", "--package=x", "-cx", "--config", "-m=1"),
)


def argument_lists(dice: random.Random, number: int) -> Iterator[tuple[str, list[str]]]:
    for _ in range(number):
        program = dice.choice(sorted(SCHEMAS))
        keys = [key for key, _ in fields_of(SCHEMAS[program])] + groups() + ["model.d_ff", "optimizer.betas"]
        given = [f"{dice.choice(keys)}={dice.choice(VALUES)}" for _ in range(dice.choice((1, 1, 2)))]
        if dice.random() < 0.2:
            given.append(dice.choice(OTHERS))
        yield program, given


def is_taken_or_refused(program: str, given: list[str]) -> bool:
    """Whether the program accepts the arguments; False: it refuses them in one line."""
    for action in (lambda: read(given), lambda: read(["-m", *given]), lambda: compose(*given, program=program)):
        try:
            action()
        except UserError as error:
            assert len(str(error).splitlines()) == 1 and "Traceback" not in str(error)
            return False
    return True


def test_some_arguments() -> None:
    for program, given in [*argument_lists(random.Random(1), 12), ("train", ["strategy=" + "x" * 5000])]:
        is_taken_or_refused(program, given)


@pytest.mark.slow
def test_many_arguments() -> None:
    taken = [is_taken_or_refused(program, given) for program, given in argument_lists(random.Random(2), 300)]
    assert 0 < sum(taken) < len(taken)
    assert tinyllm.compose().seed == 1337
