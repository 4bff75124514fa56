"""Flow-matching policies as stochastic policies: kernels, adapters, distribution, policy."""
