"""Where the sidecar meets sockets, disks and clocks."""
