"""Rows of tests/reliability.py: untrusted files and unusual surroundings."""

from tests.support.fault_row import Row

FILES, STATE, AROUND = "utils/test_files.py", "faults/test_hostile_state.py", "faults/test_surroundings.py"
PATHS, RUNS = "training/test_resume_paths.py", "programs/test_runs.py"

ROWS = (
    Row(
        number="R46",
        fault="a hostile checkpoint, study or model: pickles, arbitrary classes, Hydra settings, paths instead of"
        " option names, interpolations, shapes beyond all memory, nested zip files, paths out of the directory",
        outcome="refused; none of it is executed",
        message="not the settings of a run",
        tests=(
            "runs/test_checkpoint.py::test_a_hostile_state_executes_nothing",
            "config/test_targets.py::test_a_hostile_target_is_refused",
            "config/test_allowed.py::test_only_classes_that_an_option_file_names_for_the_node_are_allowed",
            "faults/test_foreign_files.py::test_a_class_that_no_option_file_names_is_refused",
            "faults/test_foreign_files.py::test_settings_in_a_file_may_only_choose_options_and_set_keys",
            "faults/test_foreign_files.py::test_what_config_json_says_becomes_numbers_and_names_only",
            "config/test_targets.py::test_a_hostile_target_in_a_checkpoint_is_refused",
            "faults/test_hostile_checkpoint.py::test_hostile_overrides",
            "faults/test_hostile_checkpoint.py::test_forged_tensors",
            "faults/test_hostile_checkpoint.py::test_a_manifest_that_lists_files_elsewhere",
            "faults/test_hostile_checkpoint.py::test_a_forged_tokenizer",
        ),
    ),
    Row(
        number="R47",
        fault="code that could unpickle, evaluate text, start a shell, or load part of a model",
        outcome="absent from the source",
        tests=("test_static_rules.py::test_the_package_keeps_the_rule",),
    ),
    Row(
        number="R60",
        fault="invalid JSON and yaml: endless nesting, aliases of aliases, NaN, not UTF-8, huge, a pipe",
        outcome="refused in bounded time and memory; other runs are still listed",
        message="nested deeper",
        tests=(
            f"{FILES}::test_invalid_json_is_a_one_line_error",
            f"{FILES}::test_invalid_yaml_is_a_one_line_error",
            f"{FILES}::test_only_regular_files_of_bounded_size_are_read",
            f"{RUNS}::test_a_damaged_run_is_listed_as_damaged",
            f"{RUNS}::test_a_single_damaged_run_is_listed",
        ),
    ),
    Row(
        number="R61",
        fault="symbolic links planted where a run, a study or a cache writes",
        outcome="nothing is written outside",
        message="not a lock file",
        tests=(
            f"{FILES}::test_a_link_at_the_target_is_replaced_and_not_followed",
            f"{FILES}::test_planted_links_are_not_opened",
            f"{FILES}::test_temporary_names_are_unpredictable",
            "test_static_rules.py::test_the_package_keeps_the_rule",
        ),
    ),
    Row(
        number="R62",
        fault="a state or manifest with missing fields, wrong types, or values of a different model",
        outcome="refused; nothing is written",
        message="the checkpoint's state is damaged",
        tests=(
            f"{STATE}::test_a_state_field_of_the_wrong_type_is_refused",
            f"{STATE}::test_the_state_of_another_model_is_refused",
            f"{STATE}::test_a_resume_is_refused",
            f"{STATE}::test_a_manifest_of_the_wrong_type_is_refused",
            f"{STATE}::test_a_checkpoint_under_the_name_of_another_step",
        ),
    ),
    Row(
        number="R63",
        fault="lines in the middle of metrics.jsonl are truncated or zero-filled",
        outcome="all other lines are kept; the damaged file is kept under a different name",
        message="could not be read and …left out; the original file:",
        tests=("runs/test_metrics_log.py::test_a_damaged_line_does_not_affect_others",),
    ),
    Row(
        number="R64",
        fault="resume= with the bare name of a checkpoint, from inside it, or through a link; a copied checkpoint",
        outcome="its run continues; a copy requires run.dir",
        message="the checkpoint does not belong to a run",
        tests=(
            f"{PATHS}::test_the_run_is_found",
            f"{PATHS}::test_a_copied_checkpoint_belongs_to_no_run",
            f"{PATHS}::test_a_copied_checkpoint_continues_in_a_new_directory",
        ),
    ),
    Row(
        number="R65",
        fault="moved data, a clock that stops or goes back, a name too long, another user's cache or job record",
        outcome="the run continues; a name too long is refused in one line before anything is prepared",
        message="directory name too long",
        tests=(
            f"{AROUND}::test_moved_data_are_the_same_data",
            f"{AROUND}::test_a_clock_that_stands_still",
            f"{AROUND}::test_a_name_too_long_for_a_directory",
            f"{AROUND}::test_a_cache_planted_by_another_user_is_not_used",
            f"{AROUND}::test_a_damaged_job_record_is_reported",
            f"{AROUND}::test_a_path_that_is_not_utf8",
            f"{AROUND}::test_a_read_only_run_continues_in_another_directory",
        ),
    ),
    Row(
        number="R66",
        fault="(a) a file system without locks, modes or directory fsync; (b) a disk error",
        outcome="(a) the run continues; without locks, a second run is not refused (R33); (b) reported",
        tests=(
            f"{FILES}::test_a_file_system_without_locks_holds_nothing",
            f"{FILES}::test_a_file_system_without_fsync_or_modes_suffices",
            f"{FILES}::test_a_disk_error_is_reported",
        ),
    ),
    Row(
        number="R71",
        fault="control characters, escape sequences, direction marks, markup and formulas in the names, questions,"
        " texts and files of a run or study",
        outcome="escaped in the terminal, HTML, SVG, Markdown and CSV; formulas are marked as text",
        tests=(
            "studies/report/test_foreign.py::test_control_characters_are_spelled_out_everywhere",
            "studies/report/test_foreign.py::test_no_csv_cell_is_a_formula",
            "programs/test_runs.py::test_nothing_of_a_run_commands_the_terminal",
        ),
    ),
    Row(
        number="R72",
        fault="the directory of a comparison holds unrelated files, or its figures folder is a link",
        outcome="refused; only files written by a report are ever replaced or removed",
        message="the directory is not empty",
        tests=(
            "studies/compare/test_compare.py::test_a_directory_of_other_things_is_refused",
            "studies/report/test_foreign.py::test_files_that_no_report_wrote_are_left_alone",
            "studies/report/test_foreign.py::test_forged_listing_removes_no_other_files",
            "studies/report/test_foreign.py::test_pictures_are_not_written_through_a_link",
        ),
    ),
    Row(
        number="R73",
        fault="kill -9 of a comparison",
        outcome="its training run notices, saves a checkpoint and ends; the same command continues from it",
        tests=("studies/compare/test_compare.py::test_a_comparison_that_is_killed_leaves_no_training_behind",),
    ),
    Row(
        number="R74",
        fault="a run of a comparison ends with a metric that is not finite",
        outcome="named and left out; the other runs are compared",
        tests=("studies/compare/test_statistics.py::test_a_figure_that_is_not_finite_is_left_out",),
    ),
)
