"""What a bundle says: source form, schema, lint, tests, and deterministic decisions."""
