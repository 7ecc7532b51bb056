"""Offline: from the XML that NCBI publishes to a token store. Training never imports this."""
