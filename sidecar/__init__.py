"""The policy enforcement point beside every service: identify, decide, forward, or refuse."""
