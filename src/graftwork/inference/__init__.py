"""What users ask of a model: predictions and generated texts."""
