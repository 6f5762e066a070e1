"""``python -m tinyllm.coord_check optimizer=muon``: do activations keep their size at every width?"""

from tinyllm.studies.coord_check.program import main

if __name__ == "__main__":
    main()
