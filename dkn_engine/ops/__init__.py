"""The four operations of the sweep; one folder each: contract, plain reference, kernels."""
