"""Where the control plane meets its store, its broker and its clients."""
