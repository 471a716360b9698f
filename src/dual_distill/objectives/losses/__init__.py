"""Pure functions of tensors, one kind of loss a file; their public names stand in `dual_distill.objectives`."""
