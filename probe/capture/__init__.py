"""Recording attention as it happens, in the model's own kernels."""
