"""The same work over many processes and machines, by Ray."""
