"""``python -m tinyllm.evaluate run=<run directory>``: loss, perplexity and bits per byte on a whole split."""

from tinyllm.programs.evaluate import main

if __name__ == "__main__":
    main()
