"""``python -m tinyllm.pipeline recipe=assistant``: train a model in stages, and measure what each taught and undid."""

from tinyllm.config.cli.main import run


def main() -> None:
    """Entry point of ``tinyllm-pipeline``."""
    rewrite = "tinyllm.studies.pipeline.command_line:read_stages"
    run("pipeline", "tinyllm.studies.pipeline.program:pipeline", rewrite_settings=rewrite)


if __name__ == "__main__":
    main()
