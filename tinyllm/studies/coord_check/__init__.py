"""The coordinate check: how activations grow with the width under a parametrization."""
