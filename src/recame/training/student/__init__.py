"""A student of a finished run's experts."""
