"""The only part of `trust` that touches disk, network, clock or randomness."""
