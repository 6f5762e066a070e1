"""``python -m tinyllm.probe attn=mha,gqa,mla``: what can a composition do on synthetic tasks, in CPU minutes?"""

from typing import Any


def main() -> None:
    """Entry point of ``tinyllm-probe``."""
    from tinyllm.config.cli.main import run
    from tinyllm.studies.probes.arms import first_arm

    run("probe", _run, prepare=first_arm, several=True)


def _run(cfg: Any, invocation: Any) -> int:
    from tinyllm.studies.probes.program import probe

    return probe(cfg, invocation)


if __name__ == "__main__":
    main()
