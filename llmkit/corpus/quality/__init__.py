"""Quality filters: signals of each document, and rules over them."""
