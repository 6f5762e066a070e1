"""Every user mistake ends with one line that says what is wrong, where, and what to do; nothing is created."""

import re
import shlex
from pathlib import Path

import pytest

from tests.support.bad_conversations import CONVERSATIONS
from tests.support.bad_data import DATA, bad
from tests.support.bad_rewards import REWARDS
from tests.support.fixtures import Call
from tests.support.training_runs import SMALL

CONTRACT = re.compile(r"error: (?P<what>[^()]+) \((?P<where>.+?)\): (?P<hint>.+)")
"""``error: <what> (<key>=<value> | <file>): <what is allowed or to do>``"""


GRPO = "objective=grpo dataset=prompts dataset.path=IN/prompts.jsonl init_from=IN/run"
TABLE = {
    **DATA,
    **CONVERSATIONS,
    # preferences and their objectives
    "preferences for the next token": bad(
        "dataset=preferences dataset.path=IN/pairs.jsonl", "dataset=preferences", "choose an objective for it: dpo"
    ),
    "a text for preferences": bad("objective=dpo init_from=IN/run", "objective=dpo", "dataset=preferences"),
    "DPO from random weights": bad(
        "objective=dpo dataset=preferences dataset.path=IN/pairs.jsonl", "objective=dpo", "set init_from="
    ),
    "DPO with dropout": bad(
        "objective=dpo dataset=preferences dataset.path=IN/pairs.jsonl init_from=IN/run model.dropout=0.1",
        "model.dropout=0.1",
        "set it to 0",
    ),
    "a key of another objective": bad("objective.beta=0.2", "objective.beta=0.2", "choose objective=dpo"),
    "no pull towards the reference": bad(
        "objective=dpo objective.beta=0 dataset=preferences dataset.path=IN/pairs.jsonl init_from=IN/run",
        "objective.beta=0",
        "above 0",
    ),
    "pairs too long": bad(
        "objective=simpo dataset=preferences dataset.path=IN/pairs.jsonl trainer.seq_len=8",
        "trainer.seq_len=8",
        "raise it",
    ),
    "pairs counted in tokens": bad(
        "objective=simpo dataset=preferences dataset.path=IN/pairs.jsonl trainer.max_tokens=999",
        "trainer.max_tokens=999",
        "trainer.max_steps",
    ),
    "an answer that equals the other": bad(
        "objective=simpo dataset=preferences dataset.path=IN/same.jsonl", "IN/same.jsonl:1", "nothing to learn"
    ),
    "an unknown way with long pairs": bad(
        "objective=simpo dataset=preferences dataset.path=IN/pairs.jsonl dataset.too_long=cut",
        "dataset.too_long=cut",
        "one of error, drop",
    ),
    "a tokenizer beside that of the weights": bad(
        "objective=dpo dataset=preferences dataset.path=IN/pairs.jsonl init_from=IN/run tokenizer=byte",
        "tokenizer",
        "leave it out",
    ),
    "pairs for a model of text": bad(
        "run=IN/run dataset=preferences dataset.path=IN/pairs.jsonl",
        "run=IN/run",
        "a run trained on pairs",
        program="evaluate",
        base=False,
    ),
    # rewards
    "a group of one": bad(f"{GRPO} reward=[length] objective.group_size=1", "objective.group_size=1", "at least 2"),
    "no randomness in rollouts": bad(
        f"{GRPO} reward=[length] objective.temperature=0", "objective.temperature=0", "above 0"
    ),
    "top_k in rollouts": bad(f"{GRPO} reward=[length] objective.top_k=3", "objective.top_k=3", "did you mean"),
    "no reward": bad(GRPO, "reward=[]", "choose at least one"),
    "a reward for the next token": bad("reward=[exact]", "reward", "only objective=grpo"),
    "prompts for the next token": bad(
        "dataset=prompts dataset.path=IN/prompts.jsonl", "dataset=prompts", "choose an objective for it: grpo"
    ),
    "reinforcement of random weights": bad(
        "objective=grpo reward=[length] dataset=prompts dataset.path=IN/prompts.jsonl", "objective=grpo", "init_from="
    ),
    # keys and their form
    "unknown key": bad("model.d_modle=3", "model.d_modle=3", "did you mean model.d_model?"),
    "unknown node": bad("modle.d_model=3", "modle.d_model=3", "did you mean model.d_model?"),
    "a key without its node": bad("lr=1e-3", "lr=1e-3", "did you mean optimizer.lr?"),
    "a key of a different option": bad("schedule.shape=sqrt", "schedule.shape=sqrt", "choose schedule=wsd"),
    "+ key of a part": bad("+model.block.attn.foo=1", "model.block.attn.foo=1", "MHA takes head_dim, "),
    "+ key of the loop": bad("+trainer.max_step=1", "trainer.max_step=1", "did you mean trainer.max_steps?"),
    "+ key of nothing": bad("+foo=1", "foo=1", "the configuration takes"),
    "~ key": bad("~trainer.max_steps", "~trainer.max_steps", "different value"),
    "no setting": bad("help", "help", "key=value"),
    "a path without its key": bad("IN/good.txt", "IN/good.txt", "dataset=text dataset.path=IN/good.txt"),
    "a path for an option": bad("dataset=IN/good.txt", "dataset=", "dataset=text dataset.path="),
    "a space before the =": bad("'model.d_model =3'", "model.d_model =3", "without a space"),
    "unknown flag": bad("--batch-size=4", "--batch-size=4", "batch_size=4"),
    "misspelt flag": bad("--multi-run", "--multi-run", "--multirun"),
    "flag without its value": bad("--config-dir", "--config-dir", "--help"),
    "flag of Hydra that is not offered": bad("--config-name=foo", "--config-name=foo", "--config-dir"),
    "no such --config-dir": bad("--config-dir=IN/nope", "--config-dir=IN/nope", "a directory"),
    "Hydra's run directory": bad("hydra.run.dir=x", "hydra.run.dir=x", "run.dir"),
    "several values": bad("attn=mha,gqa", "attn=mha,gqa", "-m"),
    "unfinished list": bad("optimizer.betas=[0.9", "optimizer.betas=[0.9", "quote"),
    # choices
    "unknown experiment": bad("experiment=foo", "experiment=foo", "shakespeare_char_cpu"),
    "unknown option": bad("dataset=txt", "dataset=txt", "did you mean text?"),
    "no option": bad("attn=null", "attn=null", "one of gqa, mha, mla, mqa"),
    "unknown group": bad("atn=gqa", "atn=gqa", "did you mean attn?"),
    "unknown x axis": bad("logger=wandb logger.x_axis=epochs", "logger.x_axis=epochs", "step, tokens, flops, seconds"),
    "no time for a server": bad("logger=wandb logger.init_timeout=0", "logger.init_timeout=0", "above 0"),
    # types
    "text for a whole number": bad("trainer.max_steps=abc", "trainer.max_steps=abc", "a whole number"),
    "text for a number": bad("optimizer.lr=1e-4x", "optimizer.lr=1e-4x", "a number"),
    "null for a number": bad("trainer.batch_size=null", "trainer.batch_size=null", "must not be null"),
    "a number for a switch": bad("model.bias=2", "model.bias=2", "true or false"),
    "a list too short": bad("optimizer.betas=[0.9]", "optimizer.betas=[0.9]", "a list of 2"),
    "a value for a group": bad("trainer=3", "trainer=3", "a group of keys"),
    "not finite": bad("optimizer.lr=nan", "optimizer.lr=nan", "finite"),
    "a variable that is not set": bad(
        "'seed=${oc.env:NO_SUCH}'", "seed=", "set it, or give a default: ${oc.env:NO_SUCH,"
    ),
    "no number": bad("trainer.batch_size=${oc.env:EMPTY}", "trainer.batch_size=", "whole", environ={"EMPTY": ""}),
    "itself": bad("seed=${seed}", "seed=${seed}", "another key"),
    "a value of nothing": bad("seed=${trainer.nope}", "seed=${trainer.nope}", "another key"),
    # ranges
    "negative steps": bad("trainer.max_steps=-1", "trainer.max_steps=-1", "at least 1"),
    "negative learning rate": bad("optimizer.lr=-1", "optimizer.lr=-1", "at least 0"),
    "negative weight decay": bad("optimizer.weight_decay=-1", "optimizer.weight_decay=-1", "at least 0"),
    "negative eps": bad("model.norm.eps=-1", "model.norm.eps=-1", "at least"),
    "dropout of everything": bad("model.dropout=1", "model.dropout=1", "less than 1"),
    "half a chunk": bad("objective.chunk_tokens=1.5", "objective.chunk_tokens=1.5", "whole"),
    "unknown activation": bad("model.block.ffn.activation=gelo", "model.block.ffn.activation=gelo", "relu2"),
    "a vocabulary without bytes": bad(
        "tokenizer=bpe tokenizer.vocab_size=10", "tokenizer.vocab_size=10", "at least 257"
    ),
    # values that must fit together
    "d_model not divisible": bad("model.d_model=33", "model.d_model=33", "not divisible by n_heads=2"),
    "n_kv_heads not dividing": bad("attn=gqa model.n_kv_heads=3", "model.n_kv_heads=3", "does not divide n_heads=2"),
    "more active experts than experts": bad(
        "moe=aux_free model.block.moe.n_experts=2 model.block.moe.n_active=3", "n_experts=2", "at least n_active=3"
    ),
    "odd head_dim with RoPE": bad("model.d_model=30", "model.d_model=30", "must be even"),
    "vocabulary too small": bad("model.vocab_size=3", "model.vocab_size=3", "null takes the tokenizer's"),
    "unseen character": bad(
        "trainer.sample_every=1 trainer.sample_prompt=Žluť", "trainer.sample_prompt=Žluť", "tokenizer=byte"
    ),
    "batch not divisible": bad("trainer.total_batch_tokens=100", "trainer.total_batch_tokens=100", "64 or 128"),
    "the batch twice": bad(
        "trainer.total_batch_tokens=64 trainer.grad_accum_steps=1", "trainer.grad_accum_steps=1", "omit"
    ),
    "two horizons": bad("trainer.max_steps=9 trainer.max_tokens=9", "trainer.max_tokens=9", "not both"),
    "less than a step": bad("trainer.max_tokens=63", "trainer.max_tokens=63", "one step takes 64"),
    "context too long": bad("trainer.seq_len=17", "trainer.seq_len=17", "model.max_seq_len=16"),
    "warmup without end": bad(
        "trainer.max_steps=9 schedule.warmup_steps=9", "schedule.warmup_steps=9", "below the horizon of 9"
    ),
    "never decays": bad(
        "trainer.max_steps=9 schedule=wsd schedule.stable_steps=9", "schedule.stable_steps=9", "no steps for the decay"
    ),
    "rises at the end": bad("schedule.min_lr=1", "schedule.min_lr=1", "between 0 and the peak"),
    # keys without effect
    "n_kv_heads of mha": bad("model.n_kv_heads=2", "model.n_kv_heads=2", "attn=gqa"),
    "a prompt that is never used": bad("trainer.sample_prompt=a", "trainer.sample_prompt=a", "sample_every=0"),
    "pinned memory without GPU": bad("dataloader.pin_memory=true trainer.device=cpu", "pin_memory=true", "GPU"),
    # machine
    "no such device": bad("trainer.device=mps", "trainer.device=mps", "this machine has"),
    "unknown precision": bad("trainer.precision=fp8", "trainer.precision=fp8", "bf16"),
    "a multirun in torchrun": bad("-m seed=1,2", "-m", "without torchrun", environ={"WORLD_SIZE": "2"}),
    "one process of several": bad("strategy=single", "strategy=single", "torchrun", environ={"WORLD_SIZE": "2"}),
    "several processes without a launcher": bad("strategy=ddp", "strategy=ddp", "nproc_per_node=2"),
    "sharded without a launcher": bad("strategy=fsdp", "strategy=fsdp", "strategy=auto"),
    "no process": bad("strategy=ddp strategy.nproc_per_node=0", "strategy.nproc_per_node=0", "between 1 and"),
    "how ranks speak, to one": bad("distributed.timeout_s=9", "distributed.timeout_s=9", "leave it out"),
    # directories
    "a run directory that exists": bad("run.dir=IN/run", "run.dir=IN/run", "resume=IN/run"),
    "a file in the way": bad("run.dir=IN/good.txt/run", "run.dir=IN/good.txt/run", "not a directory"),
    "a place that cannot be written": bad("run.dir=/proc/nope/run", "run.dir=/proc/nope/run", "a different place"),
    "an empty directory name": bad("run.dir=", "run.dir=", "leave the key out"),
    "a cache that cannot be written": bad(
        "", "/proc/nope", "a writable folder", environ={"TINYLLM_CACHE": "/proc/nope"}
    ),
    # resume
    "resume of nothing": bad("resume=/nope", "resume=/nope", "a run directory"),
    "resume of an empty name": bad("resume=", "resume=", "a run directory"),
    "resume of a different project": bad("resume=IN/other_project", "resume=IN/other_project", "step-"),
    "resume=auto without a place": bad("resume=auto", "resume=auto", "run.dir"),
    "a multirun of a resume": bad("-m seed=1,2 resume=IN/run", "resume=IN/run", "leave out -m"),
    "resume from a cut file": bad("resume=IN/cut", "resume=IN/cut", "state.pt", base=False),
    "resume from a flipped bit": bad("resume=IN/flipped", "resume=IN/flipped", "sha256", base=False),
    "resume without a manifest": bad("resume=IN/html", "resume=IN/html", "manifest", base=False),
    "resume into a different architecture": bad(
        "resume=IN/run model.d_model=64", "model.d_model=64", "the run has 32", base=False
    ),
    "resume with a different attention": bad("resume=IN/run attn=mqa", "model.block.attn", "MHA", base=False),
    "resume with a different corpus": bad(
        "resume=IN/run dataset.path=IN/other.txt", "dataset=", "restore the old data", base=False
    ),
    "start from nothing": bad("init_from=/nope", "init_from=/nope", "a run directory"),
    "start from a different width": bad("init_from=IN/run model.d_model=64", "IN/run/checkpoints", "in the model"),
    "start from a different tokenizer": bad("init_from=IN/run tokenizer=byte", "init_from=IN/run", "tokenizer="),
    "adapters over random weights": bad("lora=lora", "lora=lora", "set init_from=<directory>, or lora=none"),
    "adapters of unknown layers": bad(
        "init_from=IN/run lora=lora lora.targets=[q_proj]", "lora.targets=['q_proj']", "the layers are attn.qkv"
    ),
    "an adapter of the tied head": bad(
        "init_from=IN/run lora=lora lora.targets=[head]", "lora.targets=['head']", "the head is tied"
    ),
    "adapters of rank 0": bad("init_from=IN/run lora=lora lora.rank=0", "lora.rank=0", "at least 1"),
    "a rank without adapters": bad("init_from=IN/run lora.rank=4", "lora.rank=4", "lora=lora"),
    # the other programs
    "generate without a run": bad("", "run=null", "run=<directory>", program="generate", base=False),
    "generate in int4": bad("run=/nope quantize=int4", "quantize=int4", "int8", program="generate", base=False),
    "evaluate in int4": bad("run=/nope quantize=int4", "quantize=int4", "int8", program="evaluate", base=False),
    "generate from nothing": bad("run=/nope", "run=/nope", "a run directory", program="generate", base=False),
    "generate from a cut file": bad("run=IN/cut", "run=IN/cut", "state.pt", program="generate", base=False),
    "generate with an unseen character": bad(
        "run=IN/run prompt=Žluť", "prompt=Žluť", "tokenizer=byte", program="generate", base=False
    ),
    "generate with a negative temperature": bad(
        "run=IN/run temperature=-1", "temperature=-1", "at least 0", program="generate", base=False
    ),
    "generate greedily with top_k": bad(
        "run=IN/run temperature=0 top_k=3", "top_k=3", "temperature=0", program="generate", base=False
    ),
    "generate with averaged weights that are not there": bad(
        "run=IN/run weights=ema", "weights=ema", "raw", program="generate", base=False
    ),
    "evaluate an unknown split": bad("run=IN/run split=dev", "split=dev", "val", program="evaluate", base=False),
    "evaluate a test split of a text": bad(
        "run=IN/run split=test", "split=test", "dataset=wikitext", program="evaluate", base=False
    ),
    "evaluate past the context": bad("run=IN/run seq_len=17", "seq_len=17", "16", program="evaluate", base=False),
    "prepare nothing": bad(
        "dataset=text dataset.path=/nope", "dataset.path=/nope", "but not", program="prepare", base=False
    ),
    "describe the impossible": bad("model.n_heads=3", "d_model=128", "n_heads=3", program="describe", base=False),
    "describe the unknown as JSON": bad("--json model=huge", "model=huge", "one of", program="describe", base=False),
    **REWARDS,
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if place % 12 else []) for place, name in enumerate(TABLE)]
)
def test_a_mistake_is_one_line_and_creates_nothing(name: str, call: Call, inputs: Path) -> None:
    case = TABLE[name]
    before = files_of(inputs)
    base = [*SMALL, "dataset=text", f"dataset.path={inputs / 'good.txt'}"] if case.base else []
    given = shlex.split(case.args)
    answer = call(case.program, *base, *(one.replace("IN", str(inputs)) for one in given), **case.environ)
    lines = answer.err.splitlines()
    said = CONTRACT.fullmatch(lines[0])
    assert said is not None, answer.err
    assert case.where.replace("IN", str(inputs)) in said["where"], answer.err
    assert case.hint.replace("IN", str(inputs)) in f"{said['where']}: {said['hint']}", answer.err
    assert answer.code == 2
    assert len(lines) == 1
    assert "Traceback" not in answer.err + answer.out
    assert answer.made == []
    assert files_of(inputs) == before
    assert answer.seconds < 10  # less than a second on an idle machine


def files_of(place: Path) -> dict[str, int]:
    """Every file below a directory with its modification time."""
    return {str(path): path.stat().st_mtime_ns for path in place.rglob("*")}


LONG = "x" * 5000


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        *(("train", (f"resume={LONG}",)), ("train", ("--config-dir", LONG)), ("generate", (f"run={LONG}", "prompt=a"))),
        *(("compare", (f"study={LONG}",)), ("runs", (LONG,)), ("replay", (LONG,))),
    ],
)
def test_an_invalid_path_is_reported(program: str, arguments: tuple[str, ...], call: Call) -> None:
    answer = call(program, *arguments)
    assert answer.code == 2 and answer.made == [], answer
    assert answer.err == f"error: File name too long ({LONG[:200]}…)\n"
