"""``python -m tinyllm.probe attn=mha,gqa,mla``: what a composition can do on synthetic tasks, in CPU minutes."""

from tinyllm.studies.probes.program import main

if __name__ == "__main__":
    main()
