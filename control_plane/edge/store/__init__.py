"""What a control plane remembers, in SQLite or PostgreSQL. Callers own the transactions."""
