"""``python -m tinyllm.generate run=<run directory> prompt="Once"``: text from a trained model."""

from tinyllm.programs.generate import main

if __name__ == "__main__":
    main()
