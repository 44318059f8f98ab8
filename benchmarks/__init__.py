"""Speed against the peers: ratios of interleaved runs in one process, on equal work and equal weights."""
