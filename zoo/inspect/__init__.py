"""Looking inside a model: hook points, attention maps and their pictures, and what each part costs."""
