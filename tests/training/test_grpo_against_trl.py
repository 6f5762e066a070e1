"""GRPO equals TRL's ``GRPOTrainer`` through the Hugging Face export: the loss and the gradients of a step."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.interop.test_families import exported as exported_to
from tests.support.against_trl import ONE_STEP, as_transformers, changed_model, imported, named_as_theirs
from tests.support.training_runs import SMALL, train
from tinyllm.data.batch import Batch
from tinyllm.nn.loss import IGNORE
from tinyllm.programs.load_model import load
from tinyllm.training.objectives.grpo import ADVANTAGE, GRPO, OLD, PER_TOKEN, REFERENCE
from tinyllm.training.objectives.policy_gradient import advantages

pytestmark = pytest.mark.exhaustive

GROUP, NEW, BETA, TEMPERATURE = 4, 12, 0.04, 0.9
GPT2 = ("ffn=mlp", "norm=layernorm", "pos=learned", "model.bias=true")
"""A family whose layers transformers computes in fp64 throughout: RMSNorm and rotations are in fp32 there."""
QUESTIONS = ("What is 2 + 3?", "Is it raining?", "7 * 8 is what?", "Reverse abcde.")
"""Of equal length: TRL pads prompts on the left, which would change learned positions."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run on conversations, and the directory that it was exported to."""
    folder = tmp_path_factory.mktemp("run")
    run, out = folder / "run", folder / "hf"
    data = ("dataset=tasks", "tokenizer=byte", "dataset.n_train=64", "dataset.n_val=6")
    context = ("model.max_seq_len=192", "trainer.max_steps=3")
    assert train(*SMALL, *GPT2, *data, *context, f"run.dir={run}") == 0
    return run, exported_to(run, out)


@pytest.mark.parametrize(
    ("normaliser", "loss_type", "advantage", "scaled"),
    [("fixed", "dr_grpo", "mean", "none"), ("targets", "dapo", "mean", "none"), ("sequence", "grpo", "std", "group")],
)
def test_loss_and_gradient_equal_those_of_a_step(
    normaliser: str,
    loss_type: str,
    advantage: str,
    scaled: str,
    exported: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, directory = exported
    trl = imported(monkeypatch)
    # The answers stay in the order of their rewards.
    monkeypatch.setattr("trl.trainer.grpo_trainer.shuffle_sequence_dict", lambda answers: answers)
    model, original = changed_model(run, seed=1), load(run)[0]
    seen: dict[str, Any] = {}

    class Recorded(trl.GRPOTrainer):  # type: ignore[name-defined,misc]
        def _compute_loss(self, theirs: Any, inputs: dict[str, Any]) -> Any:
            # Answers that were drawn a while ago, so that some ratios are clipped.
            mask = inputs["completion_mask"]
            noise = torch.randn(mask.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
            ids, whole = (torch.cat([inputs[f"prompt_{of}"], inputs[f"completion_{of}"]], 1) for of in ("ids", "mask"))
            with torch.no_grad():
                now = self._get_per_token_logps_and_entropies(theirs, ids, whole, mask.shape[1])[0]
            inputs["old_per_token_logps"] = now + 0.3 * noise
            loss = super()._compute_loss(theirs, inputs)
            names, weights = zip(*theirs.named_parameters(), strict=True)
            gradients = torch.autograd.grad(loss, weights, retain_graph=True)
            seen.update(inputs=inputs, loss=loss.detach(), gradients=dict(zip(names, gradients, strict=True)))
            return loss

        def _calculate_rewards(self, *given: Any) -> Any:
            seen["rewards"] = super()._calculate_rewards(*given)
            return seen["rewards"]

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [sum(ids) % 7 / 7 for ids in completion_ids]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from datasets import Dataset
        from transformers import AutoTokenizer

        prompts = [[{"role": "user", "content": question}] for question in QUESTIONS]
        Recorded(
            model=as_transformers(model, directory),
            reward_funcs=reward,
            args=trl.GRPOConfig(
                output_dir=str(tmp_path),
                per_device_train_batch_size=GROUP * len(QUESTIONS),
                num_generations=GROUP,
                max_completion_length=NEW,
                temperature=TEMPERATURE,
                beta=BETA,
                loss_type=loss_type,
                scale_rewards=scaled,
                epsilon=0.2,
                epsilon_high=0.3,
                use_bias_correction_kl=False,  # the divergence of the GRPO paper, without the ratio as a factor
                seed=3,
                **ONE_STEP,
            ),
            train_dataset=Dataset.from_dict({"prompt": prompts}),
            processing_class=AutoTokenizer.from_pretrained(directory),
        ).train()

    inputs = seen["inputs"]
    counted = inputs["completion_mask"].bool()
    assert counted.sum(1).unique().numel() > 1, "answers of unequal lengths"
    rewards = seen["rewards"].double().view(len(QUESTIONS), GROUP)
    ours = advantages(rewards, advantage).flatten()
    theirs = inputs["advantages"].double()  # rounded to fp32
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)

    assert inputs["prompt_mask"].bool().all()
    rows, shape = [], (len(counted), inputs["prompt_ids"].shape[1] + NEW - 1)
    batch = Batch(inputs=torch.zeros(shape, dtype=torch.int64), targets=torch.full(shape, IGNORE), extra={})
    extra = {name: torch.zeros(shape, dtype=torch.float64) for name in (OLD, REFERENCE)}
    for row in range(len(counted)):
        prompt, answer = inputs["prompt_ids"][row], inputs["completion_ids"][row][counted[row]]
        ids, at = torch.cat([prompt, answer]), slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
        batch.inputs[row, : len(ids) - 1] = ids[:-1]
        batch.targets[row, at] = answer
        extra[OLD][row, at] = inputs["old_per_token_logps"][row][counted[row]]
        rows.append(at)
    objective = GRPO(
        model,
        group_size=GROUP,
        max_new_tokens=NEW,
        temperature=TEMPERATURE,
        advantage=advantage,  # type: ignore[arg-type]
        normaliser=normaliser,  # type: ignore[arg-type]
        clip_low=0.2,
        clip_high=0.3,
        beta=BETA,
    )
    with torch.no_grad():
        extra[REFERENCE] = objective.scores(original, batch)[0].logprobs.view(shape).double()
    for row, at in enumerate(rows):
        reference = inputs["ref_per_token_logps"][row][counted[row]].double()
        torch.testing.assert_close(extra[REFERENCE][row, at], reference, rtol=0, atol=2e-5)
        extra[REFERENCE][row, at] = reference
    batch.extra.update(extra | {ADVANTAGE: theirs, PER_TOKEN: torch.tensor(1.0)})
    loss = objective(batch)
    mean = loss.total / objective.weight(batch)
    assert float(loss.metrics["rl/kl"]) > 0 and float(loss.metrics["rl/clip_high"]) > 0
    torch.testing.assert_close(mean, seen["loss"], rtol=1e-5, atol=0)
    found = torch.autograd.grad(mean, list(model.parameters()))
    named = named_as_theirs(model, dict(zip(dict(model.named_parameters()), found, strict=True)))
    assert named.keys() >= seen["gradients"].keys()
    for name, gradient in seen["gradients"].items():
        torch.testing.assert_close(named[name], gradient, rtol=1e-5, atol=1e-5 * float(gradient.abs().max()))
