"""``python -m tinyllm.verify_resume optimizer=muon kills=3``: is a run that was killed and resumed the same run?"""

from tinyllm.programs.verify_resume import main

if __name__ == "__main__":
    main()
