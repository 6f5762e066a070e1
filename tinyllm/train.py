"""``python -m tinyllm.train``: train a model, or continue one."""

from tinyllm.programs.train import main

if __name__ == "__main__":
    main()
