"""Whole runs of GRPO: the reward rises, and the bits depend neither on a resume nor on micro-batches and ranks."""

import json
from pathlib import Path

import pytest

from tests.support.copies import run as run_ranks
from tests.support.copies import train_ranks
from tests.support.fixtures import Call
from tests.support.training_runs import SMALL, digest, logged, metrics, train

SIZES = ("model.max_seq_len=32", "optimizer.lr=1e-2", "trainer.batch_size=4")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings of a run on prompts, from weights that have seen one-digit answers."""
    folder = tmp_path_factory.mktemp("base")
    asked = [f"{a}{b}" for a in range(6) for b in range(6)]
    chats = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": str(n % 10)}]}
        for n, q in enumerate(asked)
    ]
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, chats)), encoding="utf-8")
    prompts = [{"prompt": q, "answer": "7"} for q in asked]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)), encoding="utf-8")
    run = folder / "run"
    of_chats = ("dataset=chat", f"dataset.path={folder / 'chats.jsonl'}", "tokenizer=byte", f"run.dir={run}")
    assert train(*SMALL, *SIZES, *of_chats, "trainer.max_steps=60", "trainer.batch_size=16") == 0
    given = ("dataset=prompts", f"dataset.path={folder / 'prompts.jsonl'}", "objective=grpo", "reward=[exact,length]")
    limits = ("objective.max_new_tokens=4", "reward.length.target=2", "objective.group_size=4")
    return [*SMALL, *SIZES, *given, *limits, f"init_from={run}"]


@pytest.mark.slow
def test_the_rewarded_answer_becomes_the_usual_one(base: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    much = ("schedule=constant", "objective.group_size=8", "trainer.batch_size=8", "reward.length.weight=0.01")
    assert train(*base, *much, "trainer.max_steps=20", "trainer.eval_every=20", f"run.dir={run}") == 0
    rewards, live = logged(run, "rl/reward_exact"), logged(run, "rl/live_groups")
    assert sum(rewards[-5:]) / 5 > 0.3 + sum(rewards[:5]) / 5
    assert max(logged(run, "rl/mismatch")) < 1e-4, "what is trained on has the probability that it was drawn with"
    assert live[0] > 0 and logged(run, "val/reward_exact")[-1] > 0.5
    assert all(abs(a + b - 1) < 1e-9 for a, b in zip(logged(run, "rl/ended"), logged(run, "rl/truncated"), strict=True))


@pytest.mark.slow
def test_neither_rollouts_nor_the_reference_know_of_a_resume(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts, start = tmp_path / "whole", tmp_path / "parts", Path(base[-1].partition("=")[2])
    held = (*base, "objective.beta=0.05", "trainer.max_steps=4")
    assert train(*held, f"run.dir={whole}") == 0
    divergence = logged(whole, "rl/kl")
    assert divergence[0] == 0, "the reference has the weights of the start, and is read by the passes of training"
    assert all(value > 0 for value in divergence[1:])
    assert train(*held, f"run.dir={parts}", "trainer.stop_after_steps=2") == 0
    start.rename(tmp_path / "elsewhere")
    assert train(f"resume={parts}") == 2
    assert "the weights that the run started from are missing" in capsys.readouterr().err
    (tmp_path / "elsewhere").rename(start)
    assert train(f"resume={parts}") == 0
    assert digest(parts) == digest(whole) and metrics(parts) == metrics(whole)
    sizes = {next((run / "checkpoints").glob("step-*/model.safetensors")).stat().st_size for run in (parts, start)}
    assert len(sizes) == 1, "it is never saved"


@pytest.mark.slow
@pytest.mark.parametrize(("normaliser", "strategy"), [("fixed", "ddp"), ("targets", "fsdp")])
def test_micro_batches_and_ranks_share_a_step(normaliser: str, strategy: str, base: list[str], tmp_path: Path) -> None:
    steps = ("trainer.max_steps=2", f"objective.normaliser={normaliser}", "objective.beta=0.05", "trainer.eval_every=2")
    halves = ("trainer.batch_size=2", *steps)
    whole = run_ranks(1, tmp_path / "whole", *base, *steps)
    parts = run_ranks(1, tmp_path / "parts", *base, *halves, "trainer.grad_accum_steps=2")
    ranks = run_ranks(2, tmp_path / "ranks", *base, *halves, f"strategy={strategy}")
    for other in (parts, ranks):
        for key in ("train/loss", "rl/reward", "rl/entropy", "rl/length", "train/grad_norm", "val/reward"):
            assert logged(other, key) == pytest.approx(logged(whole, key), rel=1e-4, abs=1e-6), key


@pytest.mark.slow
def test_two_ranks_know_of_no_resume(base: list[str], tmp_path: Path) -> None:
    ranks = ("strategy=ddp", "trainer.batch_size=2", "trainer.max_steps=3")
    whole = run_ranks(2, tmp_path / "whole", *base, *ranks)
    parts = run_ranks(2, tmp_path / "parts", *base, *ranks, "trainer.stop_after_steps=2")
    assert len(logged(parts, "rl/reward")) == 2
    assert [answer.code for answer in train_ranks(2, f"resume={parts}")] == [0, 0]
    assert digest(parts) == digest(whole) and metrics(parts) == metrics(whole)


@pytest.mark.slow
def test_rewards_that_never_differ_end_the_run(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat = [setting for setting in base if not setting.startswith("reward")]
    asked = ("reward=[format]", "reward.format.pattern=never", "trainer.max_steps=40", f"run.dir={tmp_path / 'run'}")
    assert train(*flat, *asked) == 2
    assert "equal rewards in every group of the first 20 steps (reward=format)" in capsys.readouterr().err


@pytest.mark.slow
def test_what_is_refused_before_the_first_answer(base: list[str], tmp_path: Path, call: Call) -> None:
    unanswered = tmp_path / "unanswered.jsonl"
    lines = [json.dumps({"prompt": str(n), "answer": "7"}) for n in range(40)]
    unanswered.write_text("\n".join([*lines, '{"prompt": "99"}']), encoding="utf-8")
    refused = (
        (("objective.max_new_tokens=40",), "do not fit into the context (objective.max_new_tokens=40): at most"),
        ((f"dataset.path={unanswered}",), f"a prompt has no answer ({unanswered}:41)"),
        (("model.dropout=0.1",), "cannot be used with this objective (model.dropout=0.1)"),
    )
    before = sorted(tmp_path.iterdir())
    for arguments, message in refused:
        done = call("train", *base, *arguments, "trainer.max_steps=2", f"run.dir={tmp_path / 'run'}")
        assert done.code == 2 and message in done.err and done.err.count("\n") == 1, done.err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.slow
def test_a_finished_run_is_evaluated_by_its_own_rewards(base: list[str], tmp_path: Path, call: Call) -> None:
    run, other = tmp_path / "run", tmp_path / "other.jsonl"
    assert train(*base, "trainer.max_steps=2", "trainer.eval_every=2", f"run.dir={run}") == 0
    done = call("evaluate", f"run={run}", "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    for name in ("val/reward", "val/reward_exact", "val/reward_length"):
        assert result[name] == logged(run, name)[-1], name
    assert result["task/exact"] == result["val/reward_exact"] and result["answers"]["max_new_tokens"] == 4
    assert result["tools"] is None, "and not the default of evaluate: the run was trained without"
    other.write_text('{"prompt": "11", "answer": "7"}\n{"prompt": "23"}\n', encoding="utf-8")
    other.with_name("p.jsonl").write_text('{"prompt": "99", "answer": "7"}\n', encoding="utf-8")
    refused = (
        (("split=test",), "no test split"),
        (("seq_len=8",), "the key has no effect here (seq_len=8)"),
        (
            ("dataset=prompts", f"dataset.path={other.with_name('p.jsonl')}", f"dataset.val_path={other}"),
            "other.jsonl:2",
        ),
    )
    for arguments, message in refused:
        done = call("evaluate", f"run={run}", *arguments)
        assert done.code == 2 and message in done.err, done.err
