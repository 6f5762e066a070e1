"""``python -m tinyllm.compare attn=mha,gqa,mla seeds=3``: which arm is better, and how sure is that?"""

from typing import Any


def main() -> None:
    """Entry point of ``tinyllm-compare``."""
    from tinyllm.config.cli.main import run
    from tinyllm.studies.compare.arms import prepare_arms

    run("compare", _task, prepare=prepare_arms, several=True)


def _task(cfg: Any, invocation: Any) -> int:
    from tinyllm.studies.compare.program import compare

    return compare(cfg, invocation)


if __name__ == "__main__":
    main()
