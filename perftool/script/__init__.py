"""What runs inside a user's own process: it finds the steps of an unchanged script, lays a Plan over what it builds,
and answers the requests of `perftool.measure.messages` at step ends.

It imports the standard library and torch, and of perftool only what does the same, since the script's interpreter need
not be perftool's. Whatever goes wrong here must leave the script as it would be without.
"""
