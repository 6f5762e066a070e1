"""``python -m tinyllm.probe attn=mha,gqa,mla``: what can a composition do on synthetic tasks, in CPU minutes?"""

from tinyllm.config.cli.main import run


def main() -> None:
    """Entry point of ``tinyllm-probe``."""
    rewrite = "tinyllm.studies.probes.arms:first_arm"
    run("probe", "tinyllm.studies.probes.program:probe", rewrite_settings=rewrite, several=True)


if __name__ == "__main__":
    main()
