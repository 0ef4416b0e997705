"""Who is in charge: views agreed by compare-and-set through a small Raft group."""
