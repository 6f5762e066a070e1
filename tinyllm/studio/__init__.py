"""The studio: compose, watch, compare and write with models in a browser."""
