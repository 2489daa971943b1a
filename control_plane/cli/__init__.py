"""The `egm` command: noun then verb."""
