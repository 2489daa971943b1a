"""Policy administration: proposals, publication, distribution, identity, fleet, and the command line."""
