"""What other libraries have written, and what they can read. Imports none of them."""
