"""Other libraries' interfaces to Bark, for programs that were written for them."""
