"""``python -m tinyllm.compare attn=mha,gqa,mla seeds=3``: which arm is better, and how sure is that?"""

from tinyllm.studies.compare.program import main

if __name__ == "__main__":
    main()
