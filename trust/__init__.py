"""Bytes in, verdict out: everything the mesh proves, without touching the world (except in `trust.edge`)."""
