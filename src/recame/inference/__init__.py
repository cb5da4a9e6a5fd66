"""Apply a model to images: predictions, features, attribution maps."""
