"""How nodes vouch for each other: what one says of itself, who may believe it, and what a quorum of them signed."""
