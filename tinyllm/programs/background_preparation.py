"""``python -m tinyllm.programs.background_preparation``: prepare the data of a run that trains on them meanwhile.

The other side is :class:`tinyllm.data.preparation_process.PreparationProcess`.
"""

import json
import os
import sys
import threading
from dataclasses import asdict
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tinyllm.config.targets import Option
from tinyllm.data.build_cache import Show
from tinyllm.data.early_start import prepare_early
from tinyllm.data.prepare import prepare
from tinyllm.data.token_data import TokenData
from tinyllm.errors import UserError
from tinyllm.programs.builders import open_corpus, plain
from tinyllm.utils.environment import is_follower
from tinyllm.utils.files import parse_json
from tinyllm.utils.platforms import ignore
from tinyllm.utils.stop_signal import HANDLED

COMMAND = (sys.executable, "-m", "tinyllm.programs.background_preparation")


def task_of(cfg: DictConfig, *, allow: frozenset[Option], rules: int, revision: str | None) -> dict[str, Any]:
    """What the process has to prepare, as JSON values.

    Args:
        cfg: the settings of the run.
        allow: options besides those of ``conf/``.
        rules: version of the split's rules.
        revision: of a data set of the hub.
    """
    return {
        "dataset": plain(cfg.dataset),
        "tokenizer": plain(cfg.tokenizer),
        "allow": [asdict(option) for option in allow],
        "path": sys.path,  # of the classes of --config-dir
        "rules": rules,
        "revision": revision,
    }


def prepare_in_background(
    cfg: DictConfig, corpus: Any, trainer: Any, *, allow: frozenset[Option], rules: int, show: Show
) -> TokenData:
    """The data of a run once their validation and their first shard are prepared.

    Raises:
        UserError: the data cannot be prepared.
    """
    task = task_of(cfg, allow=allow, rules=rules, revision=corpus.revision)
    shown = (lambda stage, done, total: None) if is_follower() else show
    return prepare_early(corpus, trainer, COMMAND, task, rules=rules, show=shown)


def main() -> None:
    """Prepare what the line on standard input says, and report on standard output."""
    ignore(HANDLED)  # Ctrl-C reaches the whole process group; the parent decides
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not get between the lines
    task = parse_json(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_input, args=(sys.stdin.fileno(),), daemon=True, name="parent").start()

    def say(content: dict[str, Any]) -> None:
        answers.write(json.dumps(content).encode() + b"\n")
        answers.flush()

    try:
        _prepare(task, say)
    except UserError as error:
        say({"error": {name: _shown(getattr(error, name)) for name in ("what", "key", "value", "file", "hint")}})
    except Exception as error:
        what = f"the data could not be prepared: {type(error).__name__}: {error}"
        say({"error": {"what": what, "file": task["dataset"].get("path")}})


def _prepare(task: dict[str, Any], say: Any) -> None:
    sys.path[:] = task["path"]
    cfg = OmegaConf.create()
    cfg.dataset, cfg.tokenizer = task["dataset"], task["tokenizer"]
    corpus, trainer = open_corpus(cfg, allow=frozenset(Option(**option) for option in task["allow"]))
    corpus.pin(task["revision"])
    prepare(corpus, trainer, rules=task["rules"], progress=lambda *stage: say({"stage": stage}))


def _shown(value: object) -> str | None:
    return None if value is None else str(value)


def _end_with_input(descriptor: int) -> None:
    """End this process when the other one has ended or closes the pipe."""
    # Not through sys.stdin: Python cannot shut down while a thread holds the lock of its buffer.
    while os.read(descriptor, 4096):
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
