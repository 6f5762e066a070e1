"""Option names of other tools are answered with the names of tinyllm."""

import re
from functools import cache

import pytest
from omegaconf import OmegaConf

import tinyllm
from tests.support.fixtures import Call
from tinyllm.config.cli.arguments import read
from tinyllm.config.option_files import conf_dir, groups
from tinyllm.config.suggestions import NAMES, VALUES, meant_by, option_meant
from tinyllm.errors import UserError


@cache
def keys() -> frozenset[str]:
    """Every key of the configuration under any choice of options."""
    from tinyllm.config.suggestions import setting_keys

    found: set[str] = set()
    for chosen in (
        ("dataset=text", "dataset.path=x", "tokenizer=bpe", "attn=mla", "moe=aux_free", "schedule=wsd", "logger=wandb"),
        ("dataset=jsonl", "dataset.path=x", "tokenizer=pretrained", "tokenizer.path=x", "moe=aux_loss", "strategy=ddp"),
        ("layers=jsonl", "model.layers.json=[]", "ffn=mlp"),
        ("ffn=glu",),
    ):
        try:
            cfg = tinyllm.compose(*chosen)
        except UserError:  # its layers have no default
            node = OmegaConf.load(conf_dir() / "layers" / "jsonl.yaml")
            found |= {f"model.layers.{name}" for name in node}
            continue
        found |= set(setting_keys(OmegaConf.to_container(cfg)))
    return frozenset(found)


@pytest.mark.parametrize(
    "ours", sorted({*NAMES.values(), *(one for group in VALUES.values() for one in group.values())})
)
def test_every_suggestion_exists(ours: str) -> None:
    for word in ours.split():
        name, equals, value = word.partition("=")
        if equals and "." not in name:
            assert name in groups()
            assert not value or (conf_dir() / name / f"{value}.yaml").is_file()
        else:
            assert name in keys()


def test_no_foreign_name_is_listed_twice() -> None:
    names = [name for row in NAMES for name in row.split()]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize(
    ("typed", "ours"),
    [
        (["--n_layer", "6"], "model.n_layers=6"),
        (["--n-layer=6"], "model.n_layers=6"),
        (["--batch_size", "4", "seed=1"], "trainer.batch_size=4"),
        (["--norm", "rms"], "norm=rmsnorm"),
        (["--dataset_name=pydocs"], "dataset=pydocs"),
        (["--use_ema"], "ema.enabled=…"),
        (["--seq_length", "--x"], "trainer.seq_len=…"),
        (["--config", "x.json"], "--config-dir"),
        (["--config=x.yaml"], "experiment="),
        (["--resume", "runs/a"], "resume=runs/a"),
        (["--generate_only"], "python -m tinyllm.generate"),
        (["--per_device_train_batch_size", "8"], "trainer.batch_size=8"),
        (["--kv-lora-rank", "8"], "attn=mla model.block.attn.kv_latent_dim=8"),
    ],
)
def test_a_flag_of_another_tool_gets_our_name(typed: list[str], ours: str) -> None:
    with pytest.raises(UserError, match="no such flag") as refused:
        read(typed)
    assert ours in refused.value.hint


@pytest.mark.parametrize(
    ("typed", "ours"),
    [
        ("n_layer=6", "did you mean model.n_layers?"),
        ("grad_checkpointing=true", "did you mean trainer.activation_checkpointing?"),
        ("vocab_size=99", "did you mean tokenizer.vocab_size?"),
        ("num_epochs=3", "did you mean trainer.max_epochs?"),
        ("max_iters=3", "did you mean trainer.max_steps?"),
        ("use_rope=true", "did you mean pos=rope?"),
        ("pos_emb=sin", "did you mean pos=sinusoidal?"),
        ("norm=rms", "did you mean norm=rmsnorm?"),
        ("norm=layer", "did you mean norm=layernorm?"),
        ("ffn=relu", "did you mean ffn=mlp model.block.ffn.activation=relu?"),
        ("ffn=swiglu_fused", "did you mean ffn=swiglu?"),
        ("pos=learn", "did you mean pos=learned?"),
        ("optimizer=adam", "did you mean optimizer=adamw?"),
        ("moe=true", "did you mean moe=aux_free?"),
        ("ema=true", "did you mean ema.enabled=true?"),
        ("curriculum=3", "set one of its keys: curriculum.enabled, curriculum.start_seq_len"),
        ("kv_cache=true", "python -m tinyllm.generate"),
    ],
)
def test_a_setting_of_another_tool_gets_our_name(typed: str, ours: str) -> None:
    with pytest.raises(UserError) as refused:
        tinyllm.compose(typed)
    assert ours in refused.value.hint


def test_every_foreign_name_is_answered_in_every_spelling(call: Call) -> None:
    for row in NAMES:
        for name in row.split():
            assert meant_by(name) and meant_by(f"--{name}") == meant_by(f"--{name.replace('_', '-')}")
    assert meant_by("nothing") == "" and option_meant("norm", "nothing") == ""
    assert re.match(r"error: unknown key \(n_layer=6\): did you mean model.n_layers\?", call("train", "n_layer=6").err)


@pytest.mark.parametrize(
    ("program", "typed", "ours"), [("runs", "--sorts", "--sort"), ("replay", "--step=3", "--steps")]
)
def test_a_misspelt_flag_gets_the_nearest_one(program: str, typed: str, ours: str, call: Call) -> None:
    answer = call(program, "x", typed)
    [line] = answer.err.splitlines()
    assert answer.code == 2 and f"did you mean {ours}?" in line


def test_train_without_arguments_is_the_default_run() -> None:
    line = read([])
    assert not line.settings and not line.multirun
