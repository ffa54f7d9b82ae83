"""A file becomes a Model, or one sentence that says why not."""
