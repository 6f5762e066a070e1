"""``python -m tinyllm.studio``: compose, watch, compare and write with models in a browser."""

from tinyllm.studio.program import main

if __name__ == "__main__":
    main()
