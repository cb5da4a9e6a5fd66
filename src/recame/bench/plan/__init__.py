"""What a bench compares: a plan, its methods and its data sets."""
