"""Mistakes with rewards and with answers compared by them, each as typed in a shell with what must be said about it."""

from tests.support.bad_data import Bad, bad


def bad_pairs(args: str, where: str, hint: str) -> Bad:
    """A wrong call of the program pairs."""
    return bad(args, where, hint, program="pairs", base=False)


REWARDS = {
    "pairs without a run": bad_pairs("", "run=null", "run=<directory>"),
    "pairs without a reward": bad_pairs("run=IN/run", "reward=[]", "choose at least one"),
    "pairs of a single answer": bad_pairs("run=IN/run reward=[length] n_samples=1", "n_samples=1", "at least 2"),
    "pairs of the likeliest answers": bad_pairs("run=IN/run reward=[length] temperature=0", "temperature=0", "above 0"),
    "pairs of a model of texts": bad_pairs("run=IN/run reward=[length]", "run=", "dataset=chat"),
    "pairs into a file that exists": bad_pairs("run=IN/run reward=[length] out=IN/good.txt", "out=IN/good.txt", "name"),
    "pairs in another tokenizer": bad_pairs("run=IN/run reward=[length] tokenizer=byte", "tokenizer=", "leave it out"),
}
