"""``python -m tinyllm.replay <run dir>``: train again what a run directory holds; are the numbers the same?"""

from tinyllm.programs.replay import main

if __name__ == "__main__":
    main()
