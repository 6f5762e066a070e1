"""Models made of the parts in ``tinyllm.nn``."""
