"""The nouns: frozen data, no behaviour beyond derived values. Imports only errors."""
