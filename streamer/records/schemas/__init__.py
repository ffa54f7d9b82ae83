"""Values that are read by a schema: documents become readers, and bytes become the cells that features are made of."""
