"""The arms of a command line and of a study file."""

import itertools
from pathlib import Path

import pytest

from tinyllm.config.cli.arguments import CommandLine
from tinyllm.errors import UserError
from tinyllm.studies.compare.arms import OWN_KEYS, ArmSet, read_arms


def arms(*settings: str) -> ArmSet:
    return read_arms(CommandLine(settings=list(settings)))


def test_every_combination_of_values_is_an_arm() -> None:
    found = arms("attn=mha,gqa,mla", "seeds=3", "ffn=gelu,swiglu", "optimizer.lr=1e-3")
    names = [f"{attn} {ffn}" for attn, ffn in itertools.product(("mha", "gqa", "mla"), ("gelu", "swiglu"))]
    assert [spec.name for spec in found.specs] == names
    assert found.specs[3].settings == ("attn=gqa", "ffn=swiglu")
    assert found.shared == ("seeds=3", "optimizer.lr=0.001")
    assert found.settings_of(found.specs[3], without=OWN_KEYS) == ["optimizer.lr=0.001", "attn=gqa", "ffn=swiglu"]


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (("optimizer.lr=1e-3,3e-3",), ["lr=0.001", "lr=0.003"]),
        (
            ("model.block.attn.window=0,128", "attn=mha,gqa"),
            ["window=0 mha", "window=0 gqa", "window=128 mha", "window=128 gqa"],
        ),
        (("model.n_layers=range(2,5)",), ["n_layers=2", "n_layers=3", "n_layers=4"]),
        (("attn=mha", "attn=mha,mla"), ["mha", "mla"]),
        (
            ("optimizer.eps=1e-8,1e-6", "model.norm.eps=1e-5,1e-6"),
            [
                f"optimizer.eps={a} model.norm.eps={b}"
                for a, b in itertools.product(("1e-08", "1e-06"), ("1e-05", "1e-06"))
            ],
        ),
    ],
)
def test_arms_are_named_by_their_differences(settings: tuple[str, ...], names: list[str]) -> None:
    assert [spec.name for spec in arms(*settings).specs] == names


def test_arms_of_a_study_file_are_combined_with_those_of_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(
        "question: Is a small latent enough?\nreference: mha\nsettings: [model=nano, 'dataset.path=a, b.txt']\n"
        "arms:\n  mha: [attn=mha]\n  small: [attn=mla, model.block.attn.kv_latent_dim=32]\n"
    )
    found = arms(f"study={tmp_path}", "ffn=gelu,swiglu", "model=tiny")
    assert [spec.name for spec in found.specs] == ["mha gelu", "mha swiglu", "small gelu", "small swiglu"]
    assert found.specs[2].settings == ("attn=mla", "model.block.attn.kv_latent_dim=32", "ffn=gelu")
    assert "model=tiny" in found.shared and "model=nano" not in found.shared
    assert [one for one in found.shared if one.startswith("question=")] == ['question="Is a small latent enough?"']
    assert any(one.startswith("dataset.path=") and "a, b.txt" in one for one in found.shared)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("attn=mha",), "nothing to compare"),
        (("attn=mha,mha",), "nothing to compare"),
        (("attn=mha,gqa", "seeds=1,2"), "the key cannot differ between arms (seeds=1,2)"),
        (("attn=mha,gqa", "budget=tokens,flops"), "the key cannot differ between arms (budget=tokens,flops)"),
        (("attn=mha,gqa", "seed=1,2"), "seeds=<number> repeats every arm"),
        (("attn=mha,gqa", "run.dir=x"), "this key cannot be set in a comparison (run.dir=x)"),
        (("attn=mha,gqa", "resume=x"), "this key cannot be set in a comparison (resume=x)"),
        (("study=/nowhere/study.yaml",), "no such study (/nowhere/study.yaml)"),
        (("optimizer.lr=interval(1e-4,1e-2)",), "a grid cannot enumerate a continuous range"),
    ],
)
def test_invalid_command_lines(settings: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError) as caught:
        arms(*settings)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arms: [mha, gqa]", "not a list of settings (arms"),
        ("arms: {mha: attn=mha}", "not a list of settings (mha"),
        ("arm: {}", "unknown key (arm"),
        ("- a", "not a study file"),
        ("arms: {a: [attn=mha], b: [attn=mha]}", "duplicate arm (b)"),
    ],
)
def test_invalid_study_files(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        arms(f"study={tmp_path / 'study.yaml'}")
    assert message in str(caught.value)
