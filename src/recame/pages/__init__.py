"""What every page shares: templates, style, words, drawing."""
