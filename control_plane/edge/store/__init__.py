"""What a control plane remembers, in SQLite or PostgreSQL. Each function takes a connection: callers own transactions."""
