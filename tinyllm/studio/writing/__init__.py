"""Writing with models, behind the page Write: what to write, the models, and the thread that writes."""
