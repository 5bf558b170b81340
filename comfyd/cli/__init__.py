"""argv in, text out. Verbs that only talk to the daemon import the standard library, typer and the client.

Owns: words, tables, exit codes (spec section 3). Must not: decide anything or import the server before a verb needs it.
"""
