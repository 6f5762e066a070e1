"""tinyllm: train small and medium language models, and compare architectures with honest numbers."""

__version__ = "0.1.0"
