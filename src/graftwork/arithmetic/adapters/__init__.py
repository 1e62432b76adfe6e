"""Adapters and fine-tuned models as what they change: merged, scored and extracted."""
