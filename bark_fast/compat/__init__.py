"""Other libraries' faces of Bark, for programs that were written for them."""
