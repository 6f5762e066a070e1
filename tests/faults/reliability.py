"""What others may have written, for tests/reliability.py."""

from tests.fault_row import Row

ROWS = (
    Row(
        number="R46",
        fault="a hostile checkpoint, study or model: a pickle, classes to be called, settings of Hydra, paths for names"
        " of options, interpolations, shapes beyond all memory, a zip in a zip, paths that lead elsewhere",
        outcome="refused; nothing of it is executed",
        message="not the settings of a run",
        tests=(
            "training/test_checkpoint.py::test_a_hostile_state_executes_nothing",
            "config/test_targets.py::test_a_hostile_target_is_refused",
            "config/test_allowed.py::"
            "test_nothing_of_the_package_is_allowed_but_what_an_option_file_names_for_that_node",
            "faults/test_foreign_files.py::test_a_class_where_no_option_file_names_it",
            "faults/test_foreign_files.py::test_settings_out_of_a_file_choose_options_by_name_and_set_keys",
            "faults/test_foreign_files.py::test_what_config_json_says_becomes_numbers_and_names_only",
            "config/test_targets.py::test_out_of_a_checkpoint_that_somebody_else_wrote",
            "faults/test_hostile_checkpoint.py::test_hostile_overrides",
            "faults/test_hostile_checkpoint.py::test_forged_tensors",
            "faults/test_hostile_checkpoint.py::test_a_manifest_that_lists_files_elsewhere",
            "faults/test_hostile_checkpoint.py::test_a_forged_tokenizer",
        ),
    ),
    Row(
        number="R47",
        fault="code that would unpickle, evaluate text, start a shell, or load half of a model",
        outcome="not in the source",
        tests=("test_static_rules.py::test_the_package_keeps_the_rule",),
    ),
)
