"""Pure decisions of the sidecar: state machines and tables, no I/O, no clock."""
