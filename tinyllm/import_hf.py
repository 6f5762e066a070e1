"""``python -m tinyllm.import_hf path=<directory of Hugging Face> out=<new run directory>``: a model from elsewhere."""

from tinyllm.programs.import_hf import main

if __name__ == "__main__":
    main()
