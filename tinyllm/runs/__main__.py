"""``python -m tinyllm.runs outputs --sort val/bpb``: the run directories there are, in a table."""

from tinyllm.programs.runs import main

if __name__ == "__main__":
    main()
