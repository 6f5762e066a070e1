"""``python -m tinyllm.probe attn=mha,gqa,mla``: find out what a composition can learn, in CPU minutes."""

from tinyllm.config.cli.main import run


def main() -> None:
    """Entry point of ``tinyllm-probe``."""
    rewrite = "tinyllm.studies.probes.arms:first_arm"
    run("probe", "tinyllm.studies.probes.program:probe", rewrite_settings=rewrite, several=True)


if __name__ == "__main__":
    main()
