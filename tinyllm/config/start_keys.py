"""Settings that belong to one start of a program and not to the run it starts, resumes or repeats."""

START_KEYS = ("resume", "run", "debug", "trainer.stop_after_steps", "trainer.max_minutes")
"""Where the run lies, how errors are shown, and when this start ends. No metric depends on them."""
NOT_SAVED = (*START_KEYS, "init_from")
"""Settings that a run does not save: a resumed run has weights of its own and does not read ``init_from`` again."""
NOT_COMPARED = (*START_KEYS, "logger")
"""Settings that two runs with the same metrics may differ in. Loggers only show a run."""
