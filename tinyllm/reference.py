"""The option reference, written from the yaml files: ``python -m tinyllm.reference > docs/options.md``."""

from tinyllm.config.reference import main

if __name__ == "__main__":
    main()
