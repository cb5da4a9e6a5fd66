"""A local raw copy of a public set -> a manifest with the published split, a module a set."""
