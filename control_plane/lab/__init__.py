"""Real processes on this machine: the development mesh and the demonstration."""
