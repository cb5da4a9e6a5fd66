"""Model + images -> predictions, features, attributions."""
