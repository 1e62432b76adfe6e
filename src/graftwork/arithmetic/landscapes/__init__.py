"""Loss and scores between adapters or models and around them."""
