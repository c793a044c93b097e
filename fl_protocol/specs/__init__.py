"""What a RunSpec is made of: one module for each of its fields, each choice told apart by its `kind`."""
