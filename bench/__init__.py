"""The demo, and every figure in the documents: each comes from a module here, with machine and date."""
