"""Tools that know nothing of models: files, locks, devices, signals, text, tables and yaml."""
