"""What runs left: evaluation, figures and tables."""
