"""The torture test: transfers between accounts while everything around them breaks, and an account of what became of each."""
