"""``python -m tinyllm.scaling scaling.budgets=[1e12,3e12,1e13]``: which size is best at a budget of FLOPs?"""

from tinyllm.studies.scaling.program import main

if __name__ == "__main__":
    main()
