"""How runs start. `local` runs here; the launchers for Google Cloud come beside it."""
