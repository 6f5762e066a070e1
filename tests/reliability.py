"""The events that we test: each with its outcome, its message, and the tests that cause it.

``python -m tests.reliability > docs/reliability.md`` writes the table; tests/test_reliability.py checks it.
"""

from tests.support.distributed_faults import ROWS as OF_RANKS
from tests.support.fault_row import Row as Row
from tests.support.foreign_faults import ROWS as OF_OTHERS
from tests.support.storage_faults import ROWS as OF_STORAGE

HEAD = """\
# Reliability

This table lists what we test: for each event, the outcome and the message you see. The tests of a row cause the event
for real: they kill processes, damage files, fill disks and stop ranks. The table is written by
`python -m tests.reliability > docs/reliability.md`. A test fails if the table is out of date, names a test that does
not exist, or quotes a message that is not in the code. The ids of removed rows are not reused.

*The same* means equal bit for bit: every weight, weight average (EMA), optimizer moment, random state and counter, and
every record of `metrics.jsonl` except the values that depend on the clock. The tests run on the CPU, where
`trainer.deterministic=auto` means true; on a GPU, set `trainer.deterministic=true` to request this.
`python -m tinyllm.verify_resume` makes this comparison for any composition. An error is one line,
`error: <what> (<key>=<value> or <file>): <hint>`, with exit code 2 and no traceback; `…` stands for the parts that
vary."""


RESUME, SAVER = "training/test_resume.py", "runs/test_checkpoint_writer.py"
BAD_INPUT = "programs/test_bad_input.py::test_a_mistake_is_one_line_and_creates_nothing"

ROWS = (
    # determinism, on which every other row rests
    Row(
        number="R01",
        fault="the same command, run twice",
        outcome="the same",
        tests=(
            f"{RESUME}::test_the_same_command_twice_gives_the_same_bits",
            "faults/test_every_combination.py::test_an_interrupted_run_is_bitwise_equal",
        ),
    ),
    Row(
        number="R02",
        fault="observing a run: evaluations, samples, checkpoints, logs, loggers, profiles",
        outcome="the same weights",
        tests=(
            f"{RESUME}::test_evaluation_samples_and_logging_do_not_change_a_run",
            "training/test_profiler.py::test_a_profile_changes_no_bit_of_the_run",
        ),
    ),
    Row(
        number="R04",
        fault="options that only save memory or time: activation recomputation, data loader workers",
        outcome="the same",
        tests=(
            "training/test_trainer.py::test_recompute_changes_memory_and_no_bit",
            "data/test_loader.py::test_workers_change_nothing",
        ),
    ),
    # stop and resume
    Row(
        number="R05",
        fault="stopped after the first step, at the end of warm-up, around the end of an epoch, during the second"
        " epoch, before the last step",
        outcome="after a resume, the same",
        tests=("faults/test_stops.py::test_stops_at_epoch_and_warm_up_boundaries_lose_no_data",),
    ),
    Row(
        number="R06",
        fault="stopped and resumed with any optimizer, schedule and feature",
        outcome="the same",
        tests=(
            "faults/test_every_combination.py::test_an_interrupted_run_is_bitwise_equal",
            f"{RESUME}::test_train_2n_equals_train_n_and_resume_n",
        ),
    ),
    Row(
        number="R07",
        fault="a resumed run is resumed again",
        outcome="the same",
        tests=(
            f"{RESUME}::test_train_2n_equals_train_n_and_resume_n",
            "faults/test_stops.py::test_stops_at_epoch_and_warm_up_boundaries_lose_no_data",
        ),
    ),
    Row(
        number="R11",
        fault="resumed with a different architecture, tokenizer, corpus or optimizer",
        outcome="refused; a different horizon is allowed, and both learning rates are printed",
        message="a resumed run cannot change …: the run has …init_from",
        tests=(
            f"{RESUME}::test_resume_refuses_another_architecture_tokenizer_or_data",
            f"{RESUME}::test_resume_refuses_a_changed_corpus",
            f"{RESUME}::test_a_longer_horizon_shows_both_learning_rates",
        ),
    ),
    Row(
        number="R12",
        fault="resume= names a missing path, an empty directory or a directory that belongs to another project",
        outcome="refused; a new run is never started instead",
        message="no such directory …(resume=/nope): …a run directory or one of its checkpoints",
        tests=(BAD_INPUT,),
    ),
    Row(
        number="R13",
        fault="a finished run is started again",
        outcome="writes nothing, exit code 0",
        message="nothing to do: …complete at step 2 of 2",
        tests=(f"{RESUME}::test_resuming_a_finished_run_changes_nothing",),
    ),
    # killed processes
    Row(
        number="R14",
        fault="kill -9 at thirty random moments, even while saving, and after the last checkpoint",
        outcome="resumes from a complete checkpoint each time, repeating at most `trainer.checkpoint_every` steps"
        " (twice as many if checkpoints are written in the background); at the end, the same",
        tests=(
            "faults/test_killed_while_saving.py::test_kills_at_random_moments",
            f"{RESUME}::test_kill_9_loses_at_most_checkpoint_every_steps",
            f"{SAVER}::test_kill_9_at_any_moment_leaves_a_complete_newest_checkpoint",
            f"{RESUME}::test_a_run_killed_between_its_last_checkpoint_and_its_result_is_completed",
        ),
    ),
    Row(
        number="R15",
        fault="kill -9 before, during and after each stage of saving: writing, renaming, updating the files that point"
        " to the newest and the best checkpoint, removing old checkpoints",
        outcome="resumes from the newest complete checkpoint; at the end, the same checkpoints",
        tests=("faults/test_killed_while_saving.py::test_killed_at",),
    ),
    Row(
        number="R16",
        fault="half-written checkpoints of killed processes",
        outcome="never loaded; removed only by the next process that locks the run directory",
        tests=(
            "faults/test_killed_while_saving.py::test_leftovers_of_a_kill_are_removed_only_by_the_owner_of_the_run",
        ),
    ),
    Row(
        number="R19",
        fault="SIGTERM, SIGINT or SIGUSR1 at any moment: in a step, an evaluation, a save",
        outcome="finishes the step, saves, exit code 143, 130 or 138; after a resume, the same. An evaluation is"
        " interrupted (R55). A second signal exits at once",
        message="resume: …resume=",
        tests=(
            f"{RESUME}::test_a_signal_finishes_the_step_saves_and_the_rerun_is_exact",
            "faults/test_stops.py::test_a_signal_outside_of_a_step_is_handled",
            "faults/test_stops.py::test_a_second_signal_leaves_at_once_and_loses_only_the_steps_since_the_checkpoint",
            f"{SAVER}::test_a_signal_while_a_checkpoint_is_written_in_the_background",
        ),
    ),
    Row(
        number="R25",
        fault="SIGTERM to the whole process group, data loader workers included",
        outcome="the workers ignore it; the run finishes the step and saves",
        tests=(
            "faults/test_stops.py::test_a_signal_to_the_whole_group_reaches_workers_too_and_is_no_fault",
            "data/test_loader.py::test_workers_outlive_the_signals_that_end_training",
        ),
    ),
    Row(
        number="R26",
        fault="a data loader worker is killed, e.g. by the out-of-memory killer",
        outcome="the run ends; its last checkpoint is intact",
        message="a data loading worker was killed (dataloader.workers=2): …it may have run out of memory",
        tests=("faults/test_workers.py::test_a_killed_worker_ends_the_run_with_its_last_checkpoint_intact",),
    ),
    # numbers
    Row(
        number="R36",
        fault="a NaN or infinite loss or gradient",
        outcome="the step is skipped: weights, weight average (EMA) and optimizer are unchanged. After"
        " `trainer.nonfinite.patience` skipped steps in a row, or with `trainer.nonfinite.action=stop`, the run ends,"
        " and its last good checkpoint stays",
        message="step 7: loss nan, gradient norm nan (sequences 48 to 55): step skipped, weights untouched",
        tests=(
            "faults/test_numbers.py::test_a_step_with_a_nan_leaves_weights_average_and_optimizer_alone",
            "faults/test_numbers.py::test_a_run_that_gives_up_keeps_its_last_good_checkpoint",
            "training/test_moe_training.py::test_a_skipped_step_leaves_the_bias",
            "distributed/test_lost_ranks.py::test_a_nan_loss_on_one_rank",
        ),
    ),
    Row(
        number="R54",
        fault="a step ruins the weights: they become non-finite, or stay finite but make every later step be skipped",
        outcome="non-finite weights are never saved; a checkpoint that may contain ruined but finite weights is named"
        " as doubtful, with the one to resume from. While steps are skipped, no checkpoint is published or removed",
        message="…the last checkpoint, may already contain bad weights; resume=…",
        tests=(
            "faults/test_numbers.py::test_ruined_weights_are_never_saved_and_the_error_names_a_good_checkpoint",
            "faults/test_numbers.py::test_a_checkpoint_of_the_step_that_ruined_the_weights_is_marked_doubtful",
            "distributed/test_lost_ranks.py::test_ruined_weights_are_not_saved_by_any_rank",
        ),
    ),
    Row(
        number="R55",
        fault="SIGTERM or SIGHUP during a long evaluation or a sample",
        outcome="interrupted on all ranks; the finished step is saved at once, and the resumed run starts with the"
        " evaluation. Under nohup, SIGHUP is ignored",
        tests=(
            "training/test_stop_and_resume.py::test_an_evaluation_interrupted_by_a_signal_is_repeated_on_resume",
            "training/test_stop_and_resume.py::test_a_signal_interrupts_a_sample",
            "training/test_stop_and_resume.py::test_sighup_stays_ignored_under_nohup",
            "distributed/test_lost_ranks.py::test_a_signal_to_one_rank_interrupts_the_evaluation_of_all",
        ),
    ),
    Row(
        number="R56",
        fault="a logger or display raises an error",
        outcome="reported once; the run continues unchanged",
        message="…failed in …; training continues",
        tests=(
            "training/test_stop_and_resume.py::test_a_callback_that_raises_is_reported_once_and_training_continues",
        ),
    ),
    Row(
        number="R57",
        fault="out of memory, at the start or during a step, an evaluation, a sample or generation",
        outcome="one line that names the task and the size of the allocation; earlier checkpoints are intact",
        message="…not enough memory (…GB more were requested…",
        tests=(
            "test_memory.py::test_each_part_of_a_run_says_what_needed_memory",
            "test_memory.py::test_a_model_beyond_all_memory_is_refused_before_anything_is_made",
        ),
    ),
    Row(
        number="R38",
        fault="fp16 overflows until the loss scale has adapted",
        outcome="skipped steps are reported; the logged gradient norm does not depend on the scale; the scale is"
        " restored on resume",
        tests=("training/test_trainer.py::test_fp16_keeps_its_scale_and_logs_the_unscaled_norm",),
    ),
    # data
    Row(
        number="R39",
        fault="text that is empty, blank, too short, UTF-16, not UTF-8, binary or missing, or leaves nothing for"
        " validation",
        outcome="refused, with the byte offset or what is missing",
        message="byte 0x…at offset …is not UTF-8",
        tests=(
            BAD_INPUT,
            "data/test_files.py::test_bad_byte_far_into_the_file",
            "data/test_files.py::test_a_nul_byte_is_an_error_or_replaced",
        ),
    ),
    Row(
        number="R40",
        fault="(a) cached tokens that are damaged or belong to a different tokenizer; (b) token ids beyond the"
        " vocabulary; (c) data files that change or vanish during preparation, or are damaged, not text or in an"
        " unreadable folder; (d) link loops; (e) a run whose data were split by older rules; (f) data that changed"
        " since the run",
        outcome="(a) rebuilt; (b) and (c) refused; (d) each file is read once; (e) the run keeps its own split; (f) a"
        " resume is refused",
        message="the …differs from the one the run was trained with",
        tests=(
            "data/test_token_cache.py::test_damage_is_found_and_repaired",
            "data/test_token_cache.py::test_a_running_training_keeps_its_data_when_the_cache_is_rebuilt",
            "data/test_token_cache.py::test_writer_refuses_ids_beyond_the_vocabulary",
            "data/test_token_cache.py::test_the_dtype_follows_the_vocabulary_size",
            "data/test_npy.py::test_damaged_files_are_refused_at_once",
            "data/test_prepare.py::test_text_that_changes_while_it_is_read_is_refused",
            "data/test_finding.py::test_each_file_once_and_loops_end",
            "data/test_finding.py::test_a_file_that_vanishes_before_it_is_read_is_one_error",
            "data/test_finding.py::test_a_folder_that_cannot_be_read_is_refused",
            "data/test_formats.py::test_a_file_that_is_not_text_is_refused_by_format",
            "training/test_older_split.py::test_an_older_run_is_resumed_and_evaluated_on_its_own_split",
            f"{RESUME}::test_resume_refuses_a_changed_corpus",
        ),
    ),
    Row(
        number="R41",
        fault="killed while preparing data; two processes prepare the same data; training that started before its data"
        " were prepared, and is killed, or the preparing process is",
        outcome="no partial file is used: the next process goes on from the last finished shard, with the same result;"
        " one process prepares, the other waits, or takes over; the run ends in the state of one on finished data",
        tests=(
            "data/test_prepare.py::test_killed_while_preparing",
            "data/test_resumed_preparation.py::test_killed_after_any_shard",
            "data/test_resumed_preparation.py::test_ids_that_were_damaged_after_the_kill_are_written_anew",
            "data/test_prepare.py::test_two_processes_build_once",
            "faults/test_early_start.py::test_kill_9_of_the_preparing_process",
            "faults/test_early_start.py::test_kill_9_of_the_trainer_and_so_of_both",
            "data/test_prepare.py::test_a_waiting_process_takes_over_when_the_builder_is_killed",
            "distributed/test_lost_ranks.py::test_ranks_share_one_run_directory_and_one_token_cache",
        ),
    ),
    Row(
        number="R42",
        fault="any text through any tokenizer; unseen characters; special tokens written as text; a damaged"
        " tokenizer file",
        outcome="nothing is lost, or the number of unknown characters is reported; no part of the text is in both"
        " splits; a damaged file is refused",
        message="characters of the validation text are not in the tokenizer's vocabulary",
        tests=(
            "tokenizers/test_round_trip.py::test_bpe",
            "tokenizers/test_round_trip.py::test_char",
            "tokenizers/test_pretrained.py::test_damaged_file_is_refused",
            "data/test_split.py::test_no_token_of_validation_is_ever_trained_on",
            "data/test_split.py::test_unseen_characters_are_reported_and_their_bytes_counted",
            "data/test_prepare.py::test_literal_end_of_text_stays_text",
        ),
    ),
    # settings, sweeps, loggers
    Row(
        number="R43",
        fault="a mistake in the configuration: unknown key or group, wrong type or range, sizes that do not fit,"
        " duplicate keys",
        outcome="refused before anything is created; the message names the key",
        message="…(model.d_modle=3): …did you mean model.d_model?",
        tests=(
            BAD_INPUT,
            "config/test_checks.py::test_values_out_of_range_are_refused",
            "config/test_compose.py::test_an_option_file_with_a_duplicate_key",
        ),
    ),
    Row(
        number="R44",
        fault="a job of a sweep fails or is killed",
        outcome="the other jobs run; the table names it; when the sweep is started again, only unfinished jobs run",
        message="job 4 (model.d_model=33): failed",
        tests=(
            "studies/sweep/test_sweep.py::test_one_of_six_fails_and_only_that_one_runs_again",
            "studies/sweep/test_sweep.py::test_half_done_jobs_go_on_from_their_checkpoints",
            "studies/sweep/test_sweep_jobs.py::test_a_killed_sweep_that_fine_tunes_ends_with_the_right_jobs",
        ),
    ),
    Row(
        number="R45",
        fault="wandb is missing, refuses, is unreachable, slow, or dies",
        outcome="training continues; metrics.jsonl has every record",
        message="wandb died (exit code -9); metrics.jsonl has every record",
        tests=(
            "loggers/test_wandb_faults.py::test_run_continues_after_a_fault",
            "loggers/test_wandb_faults.py::test_refusing_server_leaves_an_offline_run",
            "loggers/test_wandb_faults.py::test_missing_wandb_is_reported_with_the_install_command",
        ),
    ),
    *OF_OTHERS,
    Row(
        number="R70",
        fault="standard output or error is closed, has an encoding that lacks a character, or loses its reader"
        " (`\\| head`)",
        outcome="training, sweeps and comparisons continue; a program that only prints exits with code 0",
        tests=(
            "programs/test_streams.py::test_characters_missing_in_the_encoding_are_replaced",
            "programs/test_streams.py::test_a_closed_stream_discards_output_and_keeps_its_descriptor",
            "programs/test_streams.py::test_a_lost_reader_ends_only_programs_that_just_print",
        ),
    ),
    *OF_RANKS,
    *OF_STORAGE,
)

NOT_HERE = {
    "R37": "a high loss skips nothing; only a loss that is not finite does",
    "R48": "there is no web interface",
}
"""Ids of the original list of faults that have no row, and why."""


def markdown() -> str:
    """The document."""
    lines = [HEAD, "", "| id | event | outcome | message | tests |", "|---|---|---|---|---|"]
    for row in sorted(ROWS, key=lambda row: row.number):
        message = f"`{row.message}`" if row.message else ""
        tests = "<br>".join(f"`{test}`" for test in row.tests)
        lines.append(f"| {row.number} | {row.fault} | {row.outcome} | {message} | {tests} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
