"""Rows of tests/reliability.py: faults of storage."""

from tests.support.fault_row import Row

RESUME, SAVER = "training/test_resume.py", "runs/test_checkpoint_writer.py"
BAD_INPUT = "programs/test_bad_input.py::test_a_mistake_is_one_line_and_creates_nothing"

ROWS = (
    Row(
        number="R28",
        fault="the newest checkpoint is truncated, empty, garbage or a web page",
        outcome="the checkpoint before it is used, with the same result as resuming from there",
        message="checkpoint damaged (…); using step-000004 instead",
        tests=(
            "faults/test_storage.py::test_a_damaged_checkpoint_is_named_and_the_previous_one_is_used",
            "runs/test_checkpoint.py::test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_it_is_used",
        ),
    ),
    Row(
        number="R29",
        fault="a flipped bit, a page of zeros, files of two steps swapped",
        outcome="detected by the sha256 in the manifest; the checkpoint before it is used",
        message="checkpoint damaged (…): its content does not match the manifest's sha256",
        tests=(
            "faults/test_storage.py::test_a_damaged_checkpoint_is_named_and_the_previous_one_is_used",
            "runs/test_checkpoint.py::test_swapped_files_of_two_steps_are_detected",
            "runs/test_checkpoint.py::"
            "test_resume_from_a_run_whose_newest_checkpoint_is_damaged_equals_the_undamaged_run",
        ),
    ),
    Row(
        number="R30",
        fault="(a) all checkpoints are damaged; (b) the file that points to the newest checkpoint is missing or wrong",
        outcome="(a) an error that lists each checkpoint with its reason, and no new run; (b) the newest checkpoint is"
        " found without it",
        message="no complete checkpoint",
        tests=(
            "faults/test_storage.py::test_auto_does_not_start_over_when_all_checkpoints_are_damaged",
            "faults/test_storage.py::test_the_last_file_is_only_a_hint",
            "runs/test_checkpoint.py::test_if_all_checkpoints_are_damaged_each_is_listed_with_its_reason",
        ),
    ),
    Row(
        number="R31",
        fault="the disk fills up or turns read-only",
        outcome="the run ends; the partial checkpoint is removed, or ignored if the disk is read-only; the one"
        " before it is intact",
        message="no space left while writing (…): …MB are free",
        tests=(
            "faults/test_storage.py::test_a_disk_that_fills_up_ends_the_run_with_its_last_checkpoint_intact",
            "faults/test_storage.py::test_a_disk_that_turns_read_only",
            "faults/test_storage.py::test_a_disk_that_is_full_when_a_checkpoint_is_written",
            f"{SAVER}::test_a_full_disk_is_reported_by_the_next_call",
            "data/test_token_cache.py::test_full_disk",
        ),
    ),
    Row(
        number="R32",
        fault="the run directory cannot be created: part of its path is a file, or permission is denied",
        outcome="refused before the data is read",
        message="the run directory cannot be created (…): …Permission denied",
        tests=(
            "faults/test_storage.py::test_a_run_directory_that_cannot_be_made_is_refused_before_the_data_is_read",
            "faults/test_storage.py::test_a_folder_without_access_is_named",
            BAD_INPUT,
        ),
    ),
    Row(
        number="R33",
        fault="two runs in one directory",
        outcome="the second is refused, unless the file system has no locks (R66); after kill -9 of the first, the"
        " directory is free at once",
        message="the run directory is in use (…): by …pid …",
        tests=(
            f"{RESUME}::test_a_run_in_use_is_refused_and_free_after_kill_9",
            "faults/test_workers.py::test_a_killed_run_leaves_its_directory_free_though_its_workers_live_on",
        ),
    ),
    Row(
        number="R34",
        fault="several runs with an odd name start in the same second",
        outcome="each has its own directory below outputs/",
        tests=(
            "faults/test_storage.py::test_runs_of_the_same_second_have_directories_of_their_own",
            "distributed/test_lost_ranks.py::test_ranks_share_one_run_directory_and_one_token_cache",
        ),
    ),
    Row(
        number="R35",
        fault="validation loss rises and falls between saves; an old checkpoint with a higher step number is left over",
        outcome="the newest and the best checkpoint always stay; others, the left-over one included, are removed only"
        " after the new one is on disk",
        tests=(
            f"{SAVER}::test_the_newest_and_the_best_stay_and_abandoned_steps_go",
            "training/test_trainer.py::test_the_best_checkpoint_has_the_lowest_val_loss",
        ),
    ),
)
