"""The command line: arguments, flags, help, and the one caller of Hydra."""
