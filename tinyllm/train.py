"""``python -m tinyllm.train``: train a model, or continue one."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from tinyllm.config.arguments import CommandLine
    from tinyllm.config.cli import Invocation
    from tinyllm.resume import Resumption


def main() -> None:
    """Entry point of ``tinyllm-train``."""
    from tinyllm.config.cli import run

    found: list[Resumption] = []

    def with_saved_settings(line: "CommandLine") -> list[str]:
        if not any(setting.startswith("resume=") for setting in line.settings):
            return line.settings
        from tinyllm.resume import look_up

        resumption = look_up(line)
        found.extend([resumption] if resumption else [])
        return resumption.arguments if resumption else line.settings

    def task(cfg: "DictConfig", invocation: "Invocation") -> int:
        from tinyllm.session import train

        return train(cfg, invocation, found[0] if found else None)

    run("train", task, prepare=with_saved_settings)


if __name__ == "__main__":
    main()
