"""Search spaces in Hydra's grammar."""

import re
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from tests.support.sources import ROOT
from tinyllm.config.option_files import conf_dir
from tinyllm.errors import UserError
from tinyllm.studies.sweep.directory import SweepDir
from tinyllm.studies.sweep.search import check_study, open_study
from tinyllm.studies.sweep.search_space import distribution


def parsed(text: str) -> BaseDistribution:
    return distribution(OverridesParser.create().parse_override(f"key={text}"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("interval(0.5,2)", FloatDistribution(0.5, 2.0)),
        ("tag(log,interval(1e-4,1e-2))", FloatDistribution(1e-4, 1e-2, log=True)),
        ("int(interval(2,9))", IntDistribution(2, 9)),
        ("tag(log,int(interval(8,512)))", IntDistribution(8, 512, log=True)),
        ("range(2,9)", IntDistribution(2, 8)),
        ("range(2,9,3)", IntDistribution(2, 8, step=3)),
        ("range(9,2,-3)", IntDistribution(3, 9, step=3)),
        ("range(0.0,1.0,0.25)", FloatDistribution(0.0, 0.75, step=0.25)),
        ("choice(mha,gqa)", CategoricalDistribution(["mha", "gqa"])),
        ("mha,gqa,mha", CategoricalDistribution(["mha", "gqa"])),
        ("1,2", CategoricalDistribution(["1", "2"])),
        ("'a b','c,d'", CategoricalDistribution(["'a b'", "'c,d'"])),
        ("[1,2],[3]", CategoricalDistribution(["[1,2]", "[3]"])),
    ],
)
def test_distributions_of_hydras_grammar(text: str, expected: BaseDistribution) -> None:
    assert parsed(text) == expected


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("interval(2,2)", "not an interval (key=interval(2,2))"),
        ("interval(3,2)", "not an interval"),
        ("interval(0,inf)", "not an interval"),
        ("tag(log,interval(0,1))", "a logarithmic scale cannot start at 0 or below"),
        ("tag(log,choice(1,2))", "a list of values has no logarithmic scale"),
        ("tag(lg,interval(1,2))", "unknown tag lg (key=tag(lg,interval(1,2))): the only tag is log"),
        ("range(3,3)", "an empty range"),
        ("glob(*)", "a search cannot draw from this"),
    ],
)
def test_invalid_distributions(text: str, line: str) -> None:
    with pytest.raises(UserError, match=line.replace("(", r"\(").replace(")", r"\)").replace("*", r"\*")):
        parsed(text)


def test_the_documented_defaults_are_those_of_the_file() -> None:
    text = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")
    documented = dict(re.findall(r"^\| `hydra\.sweeper\.(\w+)` \| (\S+) \|", text, flags=re.MULTILINE))
    file = OmegaConf.load(conf_dir() / "hydra" / "sweeper" / "search.yaml")
    written = {key: "null" if value is None else str(value) for key, value in file.items()}
    assert documented == {key: value for key, value in written.items() if key not in ("_target_", "params")}


def test_a_study_with_foreign_trials_is_an_error(tmp_path: Path) -> None:
    study = open_study(tmp_path / "search.db", direction="minimize")
    override = OverridesParser.create().parse_override("attn=mha,gqa")
    search = {"study": study, "directory": SweepDir(tmp_path), "overrides": [override], "direction": "minimize"}
    space = {"attn": distribution(override)}
    check_study(**search, space=space)
    study.ask({"attn": CategoricalDistribution(["../../../x"])})
    with pytest.raises(UserError, match=r"the directory holds a different search .*trial 0 drew attn"):
        check_study(**search, space=space)
