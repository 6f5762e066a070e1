"""``python -m tinyllm.train``: train a model, or resume a run."""

from typing import Any


def main() -> None:
    """Entry point of ``tinyllm-train``."""
    from tinyllm.config.cli.main import run
    from tinyllm.studies.sweep.job_run import sweep_jobs
    from tinyllm.utils.stop_signal import end_with_caller

    end_with_caller()
    run("train", _run, prepare=_with_saved_settings, jobs=sweep_jobs())


def _with_saved_settings(line: Any) -> tuple[list[str], Any]:
    if any(setting.startswith("resume=") for setting in line.settings):
        from tinyllm.programs.resume import look_up

        return look_up(line)
    return line.settings, None


def _run(cfg: Any, invocation: Any) -> int:
    from tinyllm.programs.launch import launched

    code = launched(cfg, invocation)  # a run in several processes: this one waits for them without loading torch
    if code is None:
        from tinyllm.programs.train import train

        code = train(cfg, invocation)
    return code


if __name__ == "__main__":
    main()
