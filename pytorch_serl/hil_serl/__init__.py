"""The original HIL-SERL's parameters: their names and layouts, and agents loaded from them."""
