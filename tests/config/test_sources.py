"""Sources of a mixture: what their descriptions compose to, how they are quoted, and which are refused."""

from typing import Any

import pytest
from omegaconf import OmegaConf

import tinyllm
from tinyllm.config.grammar import parse_settings
from tinyllm.config.quoting import quote_literals
from tinyllm.config.saved import literal_settings
from tinyllm.errors import UserError


def mixture(**sources: str) -> tuple[str, str]:
    described = ",".join(f'{name}:"{text}"' for name, text in sources.items())
    return "dataset=mixture", f"dataset.sources={{{described}}}"


def sources_of(*overrides: str) -> Any:
    return OmegaConf.to_container(tinyllm.compose(*overrides).dataset.sources)


def test_a_source_equals_the_data_set_that_its_overrides_choose() -> None:
    """Compares node by node, for paths that need quotes and for values of several types."""
    odd = "dataset=jsonl dataset.path=/a,b=c/2024_01.jsonl dataset.field=a.b dataset.max_documents=1e3"
    found = sources_of(*mixture(odd=odd, mine="dataset=text dataset.path='my notes/*.txt' dataset.val_fraction=0.2"))
    assert list(found) == ["odd", "mine"]
    assert found["odd"] == OmegaConf.to_container(tinyllm.compose(*odd.split()).dataset)
    assert found["mine"]["path"] == "my notes/*.txt" and found["mine"]["val_fraction"] == 0.2


def test_weights_and_schedule_are_kept_as_given() -> None:
    cfg = tinyllm.compose(
        *mixture(a="dataset=pydocs", b="dataset=stdlib"),
        "dataset.weights={a:3,b:0.5}",
        "dataset.schedule=[{at:0.8,weights:{a:0,b:1}},{at:0.9,weights:{a:1,b:0}}]",
    )
    assert OmegaConf.to_container(cfg.dataset.weights) == {"a": 3, "b": 0.5}
    assert [change.at for change in cfg.dataset.schedule] == [0.8, 0.9]


def test_a_sweep_over_mixtures_keeps_each_whole() -> None:
    """Commas inside a mixture separate sources, those between mixtures the jobs."""
    _, sources = mixture(a="dataset=pydocs", b="dataset=text dataset.path=x,y")
    given = [f"{sources},{{c:'dataset=stdlib'}}", "dataset.weights={a:1,b:2},{a:2,b:1}"]
    both, weights = parse_settings(quote_literals(given, multirun=True))
    assert [str(value) for value in both.sweep_string_iterator()] == [
        '{a:"dataset=pydocs",b:"dataset=text dataset.path=x,y"}',
        "{c:'dataset=stdlib'}",
    ]
    assert list(weights.sweep_string_iterator()) == ["{a:1,b:2}", "{a:2,b:1}"]


def test_saved_settings_keep_the_description_and_the_configuration_the_data_set() -> None:
    settings = list(mixture(a="dataset=text dataset.path=${run.name}/x"))
    assert literal_settings(settings, {"dataset": {"sources": {"a": {"path": "/x"}}}}) == settings


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("dataset=mixture",), r"value missing \(dataset\.sources=\?\?\?\)"),
        (("dataset=mixture", "dataset.sources={}"), r"no sources .*give a mapping of names"),
        (("dataset=mixture", "dataset.sources=[a]"), r"no sources .*give a mapping of names"),
        (("dataset=mixture", "dataset.sources={a:3}"), r"wrong type \(dataset\.sources\.a=3\)"),
        (
            mixture(a="dataset=mixture"),
            r"a source is a mixture \(dataset\.sources\.a=dataset=mixture\): mixtures do not",
        ),
        (mixture(a="dataset.path=x"), r"no data set is chosen .*begin with one"),
        (mixture(a="dataset=pydocs model=nano"), r"not a key of a data set .*model=nano: a source sets only"),
        (mixture(a="dataset=txt"), r"dataset\.sources\.a=dataset=txt.*did you mean text"),
        (mixture(a="dataset=text dataset.pth=x"), r"sources\.a=.*dataset\.pth=x.*did you mean dataset\.path"),
        (mixture(a="dataset=text dataset.path='x"), r"value not understood .*the ' is never closed"),
        (
            mixture(a="dataset=text dataset.path=x dataset.val_path=y dataset.val_fraction=0.3"),
            r"no effect here \(dataset\.sources\.a=.*val_path=y turns it off",
        ),
    ],
)
@pytest.mark.every(3)
def test_what_is_refused(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tinyllm.compose(*overrides)
