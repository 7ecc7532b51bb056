"""A small corpus in NCBI's own formats, all of it invented, and the program that writes it."""
