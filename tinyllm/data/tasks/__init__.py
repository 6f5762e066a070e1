"""Tasks with answers that a program can check, generated instead of downloaded."""
