"""Mistakes with rewards and with answers compared by them, each as typed in a shell with what must be said about it."""

from tests.support.bad_data import Bad, bad


def bad_pairs(args: str, where: str, hint: str) -> Bad:
    """A wrong call of the program pairs."""
    return bad(args, where, hint, program="pairs", base=False)


PREFERENCES = "dataset=preferences dataset.path=IN/pairs.jsonl"
PROMPTS = "dataset=prompts dataset.path=IN/prompts.jsonl"
REWARDS = {
    "a text for a reward model": bad("objective=reward", "objective=reward", "dataset=preferences"),
    "samples of a reward model": bad(
        f"objective=reward {PREFERENCES} trainer.sample_every=5", "trainer.sample_every=5", "writes no text"
    ),
    "a margin of a reward model": bad(
        f"objective=reward {PREFERENCES} objective.beta=0.1", "objective.beta=0.1", "dpo"
    ),
    "an adapter of a reward model's head": bad(
        f"objective=reward {PREFERENCES} init_from=IN/run lora=lora lora.targets=[qkv,head]",
        "lora.targets=['qkv', 'head']",
        "its score head is trained whole",
    ),
    "pairs too long for a reward model": bad(
        f"objective=reward {PREFERENCES} trainer.seq_len=8", "trainer.seq_len=8", "raise it"
    ),
    "a reward model that is not named": bad(
        f"objective=grpo {PROMPTS} init_from=IN/run reward=[model]", "reward.model.run=???", "set it"
    ),
    "a reward model that is none": bad(
        f"objective=grpo {PROMPTS} init_from=IN/run reward=[model] reward.model.run=IN/run",
        "reward.model.run=IN/run",
        "objective=reward",
    ),
    "a reward model that is not there": bad_pairs(
        "run=IN/run reward=[model] reward.model.run=/nope", "reward.model.run=/nope", "a run directory"
    ),
    "a comparison without a reward": bad(
        f"run=IN/run versus=IN/run {PROMPTS}", "reward=[]", "choose at least one", program="evaluate", base=False
    ),
    "a comparison of models of texts": bad(
        f"run=IN/run versus=IN/run {PROMPTS} reward=[length]",
        "versus=IN/run",
        "dataset=chat",
        program="evaluate",
        base=False,
    ),
    "a comparison in int8": bad(
        f"run=IN/run versus=IN/run {PROMPTS} reward=[length] quantize=int8",
        "quantize=int8",
        "leave it out",
        program="evaluate",
        base=False,
    ),
    "a reward for a text": bad("run=IN/run reward=[length]", "reward", "dataset=tasks", program="evaluate", base=False),
    "pairs without a run": bad_pairs("", "run=null", "run=<directory>"),
    "pairs without a reward": bad_pairs("run=IN/run", "reward=[]", "choose at least one"),
    "pairs of a single answer": bad_pairs("run=IN/run reward=[length] n_samples=1", "n_samples=1", "at least 2"),
    "pairs of the likeliest answers": bad_pairs("run=IN/run reward=[length] temperature=0", "temperature=0", "above 0"),
    "pairs of a model of texts": bad_pairs("run=IN/run reward=[length]", "run=", "dataset=chat"),
    "pairs into a file that exists": bad_pairs("run=IN/run reward=[length] out=IN/good.txt", "out=IN/good.txt", "name"),
    "pairs in another tokenizer": bad_pairs("run=IN/run reward=[length] tokenizer=byte", "tokenizer=", "leave it out"),
}
