"""Turn the results of runs into tables, figures and a page."""
