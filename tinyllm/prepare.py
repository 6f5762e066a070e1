"""``python -m tinyllm.prepare dataset=… tokenizer=…``: tokenize once into the shared cache."""

from tinyllm.programs.prepare import main

if __name__ == "__main__":
    main()
