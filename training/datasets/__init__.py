"""One module a data set: where it comes from, its checksums, its parsing and its splits."""
