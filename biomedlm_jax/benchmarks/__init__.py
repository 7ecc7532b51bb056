"""What models are asked: medical question answering, read as its owners publish it."""
