"""Probes and observations of a running installation, and the history of assessments."""
