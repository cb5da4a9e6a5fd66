"""Shared by all HTML pages: templates, style, text helpers, drawing."""
