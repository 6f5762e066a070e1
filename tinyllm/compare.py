"""``python -m tinyllm.compare attn=mha,gqa,mla seeds=3``: find out which arm is better, and how certain that is."""

from tinyllm.config.cli.main import run


def main() -> None:
    """Entry point of ``tinyllm-compare``."""
    rewrite = "tinyllm.studies.compare.arms:prepare_arms"
    run("compare", "tinyllm.studies.compare.program:compare", rewrite_settings=rewrite, several=True)


if __name__ == "__main__":
    main()
