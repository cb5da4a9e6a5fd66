"""The plan of a bench: its methods, data sets and seeds."""
