"""Pure rules of the control plane: who may do what, and when a proposal may be published."""
