"""``python -m tinyllm.export run=<run directory> out=<new directory>``: a trained model for transformers."""

from tinyllm.programs.export import main

if __name__ == "__main__":
    main()
