"""Models, built from the layers in ``tinyllm.nn``."""
