"""``python -m tinyllm.runs outputs --sort val/bpb``: list, filter, sort and compare run directories."""

from tinyllm.programs.runs import main

if __name__ == "__main__":
    main()
