"""The model-inversion study: what a split network's activations tell of inputs, with and without DP-SGD."""
