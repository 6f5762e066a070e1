"""``python -m tinyllm.describe model=large attn=gqa``: what a composition costs, without building it."""

from tinyllm.programs.describe import main

if __name__ == "__main__":
    main()
